"""How does a call of an ATen op become ONNX? Through torch's own function library, as a local function per call."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from irlab.backends.onnx.emitter import Emitter, Lowering
from irlab.backends.onnx.storage import ONNX_TYPE
from irlab.backends.onnx.vocabulary import FAST
from irlab.dims import Dim
from irlab.errors import LegalityError
from irlab.ir import Op
from irlab.ops.call import Call, bind
from irlab.types import TensorType, i64, tensor

if TYPE_CHECKING:
    import onnx

DOMAIN: Final = "aten"


@cache
def _library(opset: int = FAST.opset) -> Any:
    """torch's registry of ATen ops written in ONNX."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return ONNXRegistry.from_torchlib(opset)


def refusal(target: str) -> str:
    """Why `target` ("aten.nonzero.default") has no ONNX form; empty if it has one."""
    try:
        found = [d for d in _library().get_decomps(_overload(target)) if not d.is_complex]
    except (AttributeError, ImportError) as error:
        return str(error)
    return "" if found else "torch's ONNX function library does not have it"


def _overload(target: str) -> Any:
    import torch

    _, name, overload = target.split(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def _call(op: Call, e: Emitter) -> None:
    name = e.unique(op.target.removeprefix("aten.").replace(".", "_"))
    sizes = list(dict.fromkeys(leaf for leaf in op.leaves() if isinstance(leaf, Dim)))
    function, helpers = _trace(op, sizes, name, e.vocabulary.opset)
    for item in (function, *helpers):
        e.functions[f"{item.domain}.{item.name}"] = item
        for imported in item.opset_import:
            e.opsets.setdefault(imported.domain, imported.version)
    e.opsets.setdefault(DOMAIN, 1)
    e.result(op, name, *(e[v] for v in op.args), *(e.sizes.scalar(s) for s in sizes), domain=DOMAIN)


def _trace(op: Call, sizes: list[Dim], name: str, version: int) -> tuple[onnx.FunctionProto, list[onnx.FunctionProto]]:
    """The function that computes the call from its operands and `sizes`, and the functions that it uses, in opset
    `version`."""
    import onnxscript
    from onnxscript import ir
    from torch.onnx._internal.exporter import _building, _tensors

    problem = refusal(op.target)
    if problem:
        raise LegalityError(f"call @{op.target} has no ONNX form: {problem}")
    opset = onnxscript.values.Opset("", version)

    def symbolic(label: str, type: TensorType) -> Any:
        value = _tensors.SymbolicTensor(opset, name=label)
        value.dtype = ir.DataType(ONNX_TYPE[type.dtype])
        value.shape = ir.Shape([d if isinstance(d, int) else str(d) for d in type.shape])
        return value

    operands = [symbolic(f"x{i}", v.type) for i, v in enumerate(op.args)]
    measured = {size: symbolic(f"size{i}", tensor(i64, ())) for i, size in enumerate(sizes)}

    def argument(value: object) -> Any:
        return bind(value, operands, lambda dtype: ir.DataType(ONNX_TYPE[dtype]), measured.__getitem__)

    target = _overload(op.target)
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for declared, given in zip(target._schema.arguments, op.arguments):
        if not declared.kwarg_only:
            positional.append(argument(given))
        elif given is not None or declared.name == "dtype":
            keywords[declared.name] = -1 if given is None else argument(given)
    implementation = next(d for d in _library(version).get_decomps(target) if not d.is_complex).onnx_function
    recorder = _building.OpRecorder(opset, {})
    try:
        with onnxscript.evaluator.default_as(recorder):
            outputs = implementation(*positional, **keywords)
    except Exception as error:  # whatever the library raises for arguments it does not cover
        reason = str(error).splitlines()[0]
        raise LegalityError(f"call @{op.target}: torch's ONNX function refuses these arguments: {reason}") from error
    results = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    inputs = [*operands, *measured.values()]
    graph = ir.Graph(inputs, results, nodes=recorder.nodes, opset_imports={"": version}, name=name)
    for i, value in enumerate(results):
        value.name = f"y{i}"
    helpers = [_as_ir(used) for used in recorder.functions.values()]
    for helper in helpers:
        graph.opset_imports.setdefault(helper.domain, 1)
    function = ir.Function(DOMAIN, name, "", graph=graph, attributes=[])
    return ir.serde.serialize_function(function), [ir.serde.serialize_function(h) for h in helpers]


def _as_ir(function: Any) -> Any:
    """A function of torch's library, or one written in onnxscript, as onnx-ir's."""
    from onnxscript import ir

    return (
        function if isinstance(function, ir.Function) else ir.serde.deserialize_function(function.to_function_proto())
    )


LOWERINGS: Final[dict[type[Op], Lowering]] = {Call: _call}
