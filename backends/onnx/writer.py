"""How does a model get onto disk? Its graph as one small protobuf, its tensors streamed beside it, then checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from irlab.backends.onnx.emitter import Emitter, value_info
from irlab.backends.onnx.storage import Block, Stored, all_blocks, reading_of_blocks
from irlab.errors import CheckError
from irlab.ir import Module
from irlab.weights import Array, Literal, Readings

if TYPE_CHECKING:
    import onnx

MODEL_FILE: Final = "model.onnx"
DATA_FILE: Final = "model.onnx.data"
IR_VERSION: Final = 10
"""The first that has int4; runtimes are slow to accept newer ones."""
_ALIGNMENT: Final = 4096
"""Tensors start at page boundaries, so that a runtime can map them."""
_INLINE_BYTES: Final = 1024
"""Smaller tensors stay in the protobuf: shape inference looks at them."""


def placed_bytes(size: int) -> int:
    """The bytes that a tensor of `size` bytes takes, with what lies between it and the next one."""
    return size if size <= _INLINE_BYTES else -(-size // _ALIGNMENT) * _ALIGNMENT


def build(module: Module, emitter: Emitter) -> onnx.GraphProto:
    """Emit the module's graph. Names of inputs and outputs are kept as they are."""
    from onnx import helper

    graph = module.graph
    for value in graph.inputs:
        name = value.name or ""
        emitter.bind(value, emitter.unique(name))
        emitter.sizes.offer(value)
    returned = graph.return_op
    names = dict(zip(returned.names, returned.values))
    # An output's value is called after the output; one returned twice, or straight from an input, is copied.
    for name, value in names.items():
        if value.op is not None and value.name not in names and list(names.values()).count(value) == 1:
            value.name = name
        elif value.op is not None and value.name in names and names[value.name] is not value:
            value.name = None
    emitter.lower(graph)
    for name, value in names.items():
        if emitter[value] != name:
            emitter.copy(value, name)
    return helper.make_graph(
        emitter.nodes,
        module.name or "module",
        [value_info(value.name or "", value.type) for value in graph.inputs],
        [value_info(name, value.type) for name, value in names.items()],
    )


def emit(module: Module, emitter: Emitter, values: bool = True) -> tuple[onnx.ModelProto, dict[Stored, int], int]:
    """The model, the tensors that lie beside it with their offsets, and the bytes of all of them. Without `values` no
    weight is read: the model is one to look at."""
    from onnx import helper

    graph = build(module, emitter)
    end = 0
    external: dict[Stored, int] = {}
    offsets: dict[str, int] = {}
    for stored in emitter.tensors.values():
        if stored.size_bytes <= _INLINE_BYTES and (values or isinstance(stored.source.recipe, Array | Literal)):
            graph.initializer.append(_inline(stored))
            continue
        if stored.same_bytes_as:
            graph.initializer.append(_external(stored, offsets[stored.same_bytes_as]))
            continue
        start = offsets[stored.name] = -(-end // _ALIGNMENT) * _ALIGNMENT
        graph.initializer.append(_external(stored, start))
        external[stored] = start
        end = start + stored.size_bytes
    shown = {v.name for v in (*graph.input, *graph.output)} | set(emitter.tensors)
    graph.value_info.extend(value_info(n, t) for n, t in emitter.types.items() if n not in shown and n in _made(graph))
    model = helper.make_model(
        graph,
        producer_name="irlab",
        producer_version=_version(),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in emitter.opsets.items()],
        functions=list(emitter.functions.values()),
    )
    _add_origin(model, module)
    return model, external, end


def write_model(module: Module, emitter: Emitter, directory: Path) -> Readings:
    """Write MODEL_FILE and DATA_FILE into `directory`. Raises CheckError if onnx.checker refuses the result."""
    model, external, size = emit(module, emitter)
    (directory / MODEL_FILE).write_bytes(model.SerializeToString())
    if external:
        yield from write_tensors(directory / DATA_FILE, external, size)
    check(directory / MODEL_FILE)


def check(path: Path) -> None:
    """Raise CheckError if onnx.checker refuses the model at `path`."""
    import onnx

    _register_runtime_ops()
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckError(f"onnx.checker refuses the model: {str(error).strip().splitlines()[0]}") from error


@cache
def _register_runtime_ops() -> None:
    """Tell onnx of the op that ONNX Runtime has under ONNX's own domain, as its source declares it."""
    from onnx import defs

    schema = defs.OpSchema
    floats = [f"tensor({name})" for name in ("float16", "float", "double", "bfloat16")]
    defs.register_schema(
        schema(
            "SimplifiedLayerNormalization",
            "",
            1,
            inputs=[schema.FormalParameter("X", "T"), schema.FormalParameter("scale", "V")],
            outputs=[schema.FormalParameter("Y", "V")],
            type_constraints=[("T", floats, ""), ("V", floats, "")],
            attributes=[
                schema.Attribute("axis", schema.AttrType.INT, "", required=False),
                schema.Attribute("epsilon", schema.AttrType.FLOAT, "", required=False),
                schema.Attribute("stash_type", schema.AttrType.INT, "", required=False),
            ],
        )
    )


def write_tensors(path: Path, tensors: Mapping[Stored, int], size: int) -> Readings:
    """Fill a file of `size` bytes with tensors at their offsets, block by block."""
    with path.open("wb", buffering=0) as file:

        def write(stored: Stored, block: Block) -> None:
            start = tensors[stored] + block.row * stored.row_bytes + block.column
            if block.data.shape[1] == stored.row_bytes:
                _write_at(file, start, block.data.tobytes())
                return
            for i, row in enumerate(block.data):
                _write_at(file, start + i * stored.row_bytes, row.tobytes())

        yield reading_of_blocks(list(tensors), write)
        file.truncate(size)


def _write_at(file: Any, offset: int, data: bytes) -> None:
    file.seek(offset)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _made(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in node.output}


def _tensor_proto(stored: Stored) -> onnx.TensorProto:
    import onnx

    return onnx.TensorProto(name=stored.name, data_type=stored.onnx_type, dims=stored.shape)


def _inline(stored: Stored) -> onnx.TensorProto:
    data = bytearray(stored.size_bytes)
    for block in all_blocks(stored):
        for i in range(block.data.shape[0]):
            start = (block.row + i) * stored.row_bytes + block.column
            data[start : start + block.data.shape[1]] = block.data[i].tobytes()
    proto = _tensor_proto(stored)
    proto.raw_data = bytes(data)
    return proto


def _external(stored: Stored, offset: int) -> onnx.TensorProto:
    import onnx

    proto = _tensor_proto(stored)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", DATA_FILE), ("offset", str(offset)), ("length", str(stored.size_bytes))):
        proto.external_data.add(key=key, value=text)
    return proto


def _add_origin(model: onnx.ModelProto, module: Module) -> None:
    """Licence and base model travel with the file."""
    for key in ("licence", "base_model"):
        text = module.metadata.get(key)
        if text:
            model.metadata_props.add(key=key, value=str(text))


def _version() -> str:
    import irlab

    return irlab.__version__
