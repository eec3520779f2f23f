"""How does a legalised module become an INetworkDefinition with profiles and a builder configuration?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irlab.backends.tensorrt.callbacks import Note, progress_monitor, silent, stream_writer
from irlab.backends.tensorrt.constants import ConstantStore
from irlab.backends.tensorrt.emitter import Emitter, input_type
from irlab.backends.tensorrt.library import load
from irlab.backends.tensorrt.log import BuilderLog
from irlab.backends.tensorrt.lowerings import LOWERINGS
from irlab.backends.tensorrt.numbers import trt_type
from irlab.backends.tensorrt.profiles import Limits, Profile, buffered_caches, profiles
from irlab.errors import InputError, LegalityError
from irlab.ir import Graph, Module, Value

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Network:
    """A network under construction with all that must outlive it: TensorRT copies no weight before it builds."""

    definition: Any
    builder: Any
    log: BuilderLog
    constants: ConstantStore
    arrays: dict[str, np.ndarray]
    """The array behind each constant layer, by its name."""
    low_bit: dict[str, str]
    profiles: list[Profile]
    shapes: dict[str, list[tuple[tuple[int, ...], ...]]]
    """The three shapes of each input with a dynamic size, for each profile."""
    buffers: dict[str, str]
    """Cache inputs that are buffers of fixed length, each with the output that is the same buffer, written."""

    def close(self) -> None:
        """Let the network go, and then its weights."""
        self.definition = self.builder = None
        self.arrays.clear()
        self.constants.close()


def lower(module: Module, limits: Limits, scratch: Path | None = None, jobs: int = 1, note: Note = silent) -> Network:
    """The network of a legalised `module`, for resolved `limits`; large weights go through files in `scratch`.
    Raises LegalityError, naming op and place, for what TensorRT refuses."""
    library = load()
    log = BuilderLog()
    builder = library.Builder(log.logger)
    definition = builder.create_network(_strongly_typed(library))
    definition.name = module.name or "module"
    numbers, total = count(1), len(module.weights)
    constants = ConstantStore(scratch, jobs, lambda: note("reading weights", min(next(numbers), total), total))
    buffers = buffered_caches(module.graph)
    found = profiles(module.graph, limits, bool(buffers))
    with Emitter(definition, LOWERINGS, constants, log) as emitter:
        shapes = _add_inputs(module.graph, emitter, limits, found, buffers)
        emitter.lower(module.graph)
        _mark_outputs(module, emitter, {buffers[cache]: t for cache, t in emitter.buffers_written.items()})
    handed_back = {cache.name or "": output for cache, output in buffers.items()}
    return Network(
        definition, builder, log, constants, emitter.weight_arrays, emitter.low_bit, found, shapes, handed_back
    )


def _add_inputs(
    graph: Graph, emitter: Emitter, limits: Limits, found: list[Profile], buffers: dict[Value, str]
) -> dict[str, list[tuple[tuple[int, ...], ...]]]:
    """Add the graph's inputs; the three shapes of each dynamic one, for each profile."""
    shapes: dict[str, list[tuple[tuple[int, ...], ...]]] = {}
    for value in graph.inputs:
        shape = buffer_shape(value, limits) if value in buffers else value.type.shape
        tensor = emitter.network.add_input(
            value.name, trt_type(value.type.dtype), input_type(value.type.with_shape(shape))
        )
        if tensor is None:
            raise LegalityError(f"TensorRT refuses the input '{value.name}', {value.type}")
        if value in buffers:
            emitter.buffers[value] = tensor
        else:
            emitter.bind(value, tensor)
            emitter.sizes.offer(value)
        if any(d < 0 for d in tensor.shape):
            shapes[value.name or ""] = [profile.shapes(shape) for profile in found]
    return shapes


def _strongly_typed(library: Any) -> int:
    """TensorRT 11 and RTX know only strongly typed networks; before that it is a flag."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def buffer_shape(cache: Value, limits: Limits) -> tuple[Any, ...]:
    """The shape of a cache that is a buffer: [batch, kv_heads, capacity, head_dim]."""
    batch, heads, _, width = cache.type.shape
    return (batch, heads, limits.capacity, width)


def _mark_outputs(module: Module, e: Emitter, written: dict[str, Any]) -> None:
    inputs = {value.name for value in module.graph.inputs}
    taken: set[str] = set()
    for name, value in module.graph.outputs.items():
        tensor = written[name] if name in written else e[value]
        if tensor.name in inputs or tensor.name in taken:
            tensor = e.tensor("identity", tensor)
        tensor.name = name
        taken.add(name)
        e.network.mark_output(tensor)


def build_to(network: Network, targets: Sequence[str], path: Path, note: Note = silent) -> int:
    """Build the engine for `targets` and write it to `path`; gives its size in bytes. Raises InputError with the
    builder's words, which name layers by the module path of the op, and OSError where the disk is full."""
    library = load()
    config = network.builder.create_builder_config()
    _aim(config, targets, library)
    monitor = progress_monitor(note)  # it must live as long as the build
    config.progress_monitor = monitor
    for index, _ in enumerate(network.profiles):
        profile = network.builder.create_optimization_profile()
        for name, shapes in network.shapes.items():
            profile.set_shape(name, *shapes[index])
        if network.shapes and config.add_optimization_profile(profile) < 0:
            raise InputError(f"TensorRT refuses the profile '{network.profiles[index].name}': {network.log.last}")
    with path.open("wb") as file:
        writer = stream_writer(file)
        done = network.builder.build_serialized_network_to_stream(network.definition, config, writer)
        if writer.error is not None:
            raise writer.error
    if not done or not writer.bytes:
        words = network.log.last or "it gave no reason"
        raise InputError(f"TensorRT's builder failed: {words}", blamed(network, network.log.errors))
    return int(writer.bytes)


def blamed(network: Network, messages: Sequence[str]) -> str:
    """Where in the model the layer comes from that `messages` name, as "the layer NAME comes from ..."; else empty."""
    from irlab.backends.tensorrt.description import layers

    text = "\n".join(messages)
    named = [layer for layer in layers(network.definition) if layer.name in text]
    if not named:
        return ""
    layer = max(named, key=lambda layer: len(layer.name))  # names begin alike
    return f"the layer {layer.name} comes from {layer.metadata or 'the graph'}"


def _aim(config: Any, targets: Sequence[str], library: Any) -> None:
    """Build for `targets` where the builder can do that ahead of time, else for the GPU that is there."""
    if not hasattr(library, "ComputeCapability"):
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(getattr(library.ComputeCapability, target.upper()), index)
