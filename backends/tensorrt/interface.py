"""What does an engine read and write? Names, types and shapes, as `engine.json` states them and a runner needs them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from irlab.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from irlab.backends.tensorrt.network import Network


@dataclass(frozen=True)
class Port:
    """An input or output: its name, type ("half") and shape, -1 where a size is dynamic."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a network or engine. `buffers`: cache inputs of fixed length, each with the output
    that is the same memory, written in place."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    buffers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network) -> Interface:
        """That of a network under construction."""
        definition = network.definition
        inputs = tuple(_port(definition.get_input(i)) for i in range(definition.num_inputs))
        outputs = tuple(_port(definition.get_output(i)) for i in range(definition.num_outputs))
        return cls(inputs, outputs, dict(network.buffers))

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Interface:
        """That which engine.json states. Raises InputError where it does not."""
        try:
            inputs, outputs = (
                tuple(Port(str(p["name"]), str(p["type"]), tuple(map(int, p["shape"]))) for p in stated[side])
                for side in ("inputs", "outputs")
            )
            return cls(inputs, outputs, {str(k): str(v) for k, v in stated["cache_buffers"].items()})
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("engine.json does not state inputs, outputs and cache_buffers") from None

    def stated(self) -> dict[str, Any]:
        """As JSON."""
        ports = {"inputs": self.inputs, "outputs": self.outputs}
        shown = {side: [vars(port) | {"shape": list(port.shape)} for port in row] for side, row in ports.items()}
        return {**shown, "cache_buffers": dict(self.buffers)}

    @property
    def caches(self) -> dict[str, str]:
        """Cache inputs, each with the output that feeds it in the next step."""
        made = {port.name for port in self.outputs}
        named = ((port.name, port.name.replace("past_key_values", "present")) for port in self.inputs)
        return {name: output for name, output in named if name != output and output in made}

    @property
    def capacity(self) -> int:
        """The positions that the cache buffers hold; 0 without buffers."""
        return min((port.shape[2] for port in self.inputs if port.name in self.buffers), default=0)


def _port(tensor: Any) -> Port:
    return Port(tensor.name, str(tensor.dtype).removeprefix("DataType.").lower(), tuple(tensor.shape))


class Session(Protocol):
    """Something that runs a decoder with an interface and keeps its cache."""

    interface: Interface

    def forget(self) -> None:
        """Empty the cache."""

    def step(self, tokens: Sequence[int], past: int) -> np.ndarray:
        """The logits f32[tokens, vocab] of `tokens`, after `past` positions that lie in the cache."""


def small_inputs(interface: Interface, tokens: Sequence[int], past: int) -> dict[str, np.ndarray]:
    """The inputs of a decoder that are no caches, for one sequence. Raises InputError for one it does not know."""
    import numpy as np

    total = past + len(tokens)
    known = {
        "input_ids": np.array([list(tokens)], np.int64),
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total, dtype=np.int64)[None],
    }
    wanted = [port.name for port in interface.inputs if port.name not in interface.caches]
    strange = [name for name in wanted if name not in known]
    if strange:
        raise InputError(f"a decoder's runner has no value for the input '{strange[0]}'")
    return {name: known[name] for name in wanted}


def decode(session: Session, prompt: Sequence[int]) -> Generator[np.ndarray, int, None]:
    """The logits f32[vocab] after `prompt`, then after each token that is sent in; a graph without a cache runs the
    whole sequence again. Raises InputError where the cache is full."""
    session.forget()
    tokens, fresh, past = list(prompt), list(prompt), 0
    while True:
        capacity = session.interface.capacity
        if capacity and past + len(fresh) > capacity:
            raise InputError(f"the cache holds {capacity} positions", "build with a larger max-past")
        logits = session.step(fresh, past)
        token = yield logits[-1]
        tokens.append(token)
        past, fresh = (past + len(fresh), [token]) if session.interface.caches else (0, tokens)


def greedy(session: Session, prompt: Sequence[int], count: int, end: frozenset[int] = frozenset()) -> list[int]:
    """Up to `count` tokens after `prompt`, each the likeliest; it stops after a token of `end`."""
    steps = decode(session, prompt)
    logits, chosen = next(steps), list[int]()
    while True:
        chosen.append(int(logits.argmax()))
        if len(chosen) >= count or chosen[-1] in end:
            return chosen
        logits = steps.send(chosen[-1])
