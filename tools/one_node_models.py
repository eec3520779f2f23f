"""A model of one node for each op that the backend can write, in each type: what to ask a provider about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

OPSET: Final = 23
TYPES: Final = {"f32": 1, "f16": 10, "i32": 6, "u32": 12, "i64": 7, "bool": 9, "u8": 2, "i8": 3}
SHAPE: Final = [2, 4, 8, 16]

Operand = tuple[int, Sequence[int], Sequence[float] | None]
"""Element type, shape, and values where it is a constant."""

UNARY: Final = (
    "Abs", "Neg", "Sign", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log", "Reciprocal", "Relu", "Round", "Sigmoid", "Sin",
    "Softmax", "Sqrt", "Tanh", "Identity", "IsNaN", "Not", "BitwiseNot", "Shape", "Gelu",
)  # fmt: skip
BINARY: Final = (
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Pow", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
)  # fmt: skip


def ints(*values: int) -> Operand:
    """A constant vector."""
    return 7, [len(values)], values


def cases() -> Iterator[tuple[str, str, str, list[Operand], dict[str, Any], int]]:
    """op, domain, type, operands, attributes and number of outputs."""
    ms = "com.microsoft"
    for name, kind in TYPES.items():
        x: Operand = (kind, SHAPE, None)
        indices: Operand = (7, SHAPE, None)
        for op in UNARY:
            yield op, "", name, [x], {}, 1
        for op in BINARY:
            yield op, "", name, [x, x], {}, 1
        yield "MatMul", "", name, [x, (kind, [2, 4, 16, 16], None)], {}, 1
        yield "Cast", "", name, [x], {"to": 1}, 1
        yield "Concat", "", name, [x, x], {"axis": 1}, 1
        yield "Expand", "", name, [x, ints(*SHAPE)], {}, 1
        yield "Gather", "", name, [x, (7, [3], None)], {"axis": 1}, 1
        yield "GatherElements", "", name, [x, indices], {"axis": 1}, 1
        yield "Slice", "", name, [x, ints(0), ints(2), ints(1), ints(1)], {}, 1
        yield "Split", "", name, [x, ints(2, 2)], {"axis": 1}, 2
        yield "Pad", "", name, [x, ints(0, 0, 0, 0, 0, 0, 1, 1), (kind, [], None)], {}, 1
        yield "Reshape", "", name, [x, ints(2, -1)], {}, 1
        yield "Squeeze", "", name, [(kind, [1, 4], None), ints(0)], {}, 1
        yield "Unsqueeze", "", name, [x, ints(0)], {}, 1
        yield "Transpose", "", name, [x], {"perm": [0, 2, 1, 3]}, 1
        yield "Where", "", name, [(9, SHAPE, None), x, x], {}, 1
        yield "CumSum", "", name, [x, (7, [], [1])], {}, 1
        yield "TopK", "", name, [x, ints(2)], {"axis": 1}, 2
        yield "ArgMax", "", name, [x], {"axis": 1}, 1
        for op in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"):
            yield op, "", name, [x, ints(1)], {}, 1
        yield "ScatterElements", "", name, [x, indices, x], {"axis": 1}, 1
        yield "Range", "", name, [(kind, [], None)] * 3, {}, 1
        yield "AveragePool", "", name, [x], {"kernel_shape": [2, 2]}, 1
        yield "MaxPool", "", name, [x], {"kernel_shape": [2, 2]}, 1
        yield "Conv", "", name, [x, (kind, [4, 4, 3, 3], None)], {}, 1
        yield "LayerNormalization", "", name, [x, (kind, [16], None)], {}, 1
        yield "MatMulInteger", "", name, [x, (3, [2, 4, 16, 16], None)], {}, 1
        yield "BitShift", "", name, [x, x], {"direction": "RIGHT"}, 1
        if name not in ("f32", "f16"):
            continue
        flat: Operand = (kind, [2, 8, 64], None)
        angles: Operand = (kind, [2, 8, 8], None)
        cache: Operand = (kind, [2, 4, 8, 16], None)
        mask: Operand = (9, [2, 1, 8, 16], None)
        attended = [flat, flat, flat, mask, cache, cache]
        yield "Attention", "", name, attended, {"q_num_heads": 4, "kv_num_heads": 4}, 3
        for op in ("SimplifiedLayerNormalization", "RMSNormalization"):
            yield op, "", name, [x, (kind, [16], None)], {}, 1
        yield "RotaryEmbedding", "", name, [flat, angles, angles], {"num_heads": 4}, 1
        rows: Operand = (kind, [16, 8], None)
        yield "RotaryEmbedding", ms, name, [flat, (7, [2, 8], None), rows, rows], {}, 1
        blocks = {"bits": 4, "block_size": 16}
        codes: Operand = (2, [16, 4, 8], [17] * 512)
        yield "MatMulNBits", ms, name, [flat, codes, (kind, [64], [1.0] * 64)], {"K": 64, "N": 16, **blocks}, 1
        yield "FusedMatMul", ms, name, [x, (kind, [2, 4, 16, 16], None)], {"transB": 1}, 1
        one: Operand = (kind, [2, 1, 64], None)
        heads = {"num_heads": 4, "kv_num_heads": 4}
        lengths: list[Operand] = [(6, [2], None), (6, [1], None)]
        yield "GroupQueryAttention", ms, name, [one, one, one, cache, cache, *lengths], heads, 3
        table: list[Operand] = [(2, [32, 8], None), (7, [3], None), (kind, [32, 1], None)]
        yield "GatherBlockQuantized", ms, name, table, {"gather_axis": 0, "quantize_axis": 1, **blocks}, 1
        yield "QuantizeLinear", "", name, [x, (kind, [], [0.5]), (2, [], [128])], {}, 1
        if name == "f32":
            yield "DynamicQuantizeLinear", "", name, [x], {}, 3
        for code, number in (("i8", 3), ("u8", 2), ("i4", 22), ("u4", 21)):
            operands: list[Operand] = [(number, [32, 16], None), (kind, [2, 16], None)]
            yield "DequantizeLinear", "", code, operands, {"axis": 0, "block_size": 16}, 1


def model(op: str, domain: str, operands: list[Operand], attributes: dict[str, Any], outputs: int) -> bytes:
    """A model of one node."""
    from onnx import helper as h

    inputs, constants = [], []
    for i, (kind, shape, values) in enumerate(operands):
        if values is None:
            inputs.append(h.make_tensor_value_info(f"x{i}", kind, shape))
        else:
            constants.append(h.make_tensor(f"x{i}", kind, shape, values))
    results = [f"y{i}" for i in range(outputs)]
    node = h.make_node(op, [f"x{i}" for i in range(len(operands))], results, domain=domain, **attributes)
    graph = h.make_graph([node], "g", inputs, [h.make_empty_tensor_value_info(name) for name in results], constants)
    opsets = [h.make_opsetid("", OPSET), h.make_opsetid("com.microsoft", 1)]
    data: bytes = h.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return data


def is_valid(data: bytes) -> bool:
    """Whether ONNX Runtime takes the types, be it without a kernel of its own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        return "NOT_IMPLEMENTED" in str(error)
    return True
