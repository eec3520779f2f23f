"""The two rewriting workloads of rewrite.py, as their peers would write them.

A peer builds a graph of the given size and returns a function that rewrites it; the rules are in the peer's own form,
and where it matches in Python by hand (xDSL), that is the fastest code we could write. tinygrad has no ops for mean and
matmul of this kind: others of the same arity stand for them, which costs the matcher the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Work: TypeAlias = Callable[[], object]
Peer: TypeAlias = Callable[[str, int], Work]


def xdsl_peer(workload: str, count: int) -> Work:
    """xDSL: a `PatternRewriteWalker` over a block of pure ops."""
    from xdsl.dialects.builtin import ModuleOp, f32
    from xdsl.dialects.test import TestOp
    from xdsl.ir import Block, Operation, Region, SSAValue
    from xdsl.irdl import IRDLOperation, irdl_op_definition, operand_def, result_def, traits_def
    from xdsl.pattern_rewriter import (
        GreedyRewritePatternApplier,
        PatternRewriter,
        PatternRewriteWalker,
        RewritePattern,
    )
    from xdsl.traits import Pure

    class Unary(IRDLOperation):
        x = operand_def()
        result = result_def()
        traits = traits_def(Pure())

        def __init__(self, x: SSAValue) -> None:
            super().__init__(operands=[x], result_types=[x.type])

    class Binary(IRDLOperation):
        x = operand_def()
        y = operand_def()
        result = result_def()
        traits = traits_def(Pure())

        def __init__(self, x: SSAValue, y: SSAValue) -> None:
            super().__init__(operands=[x, y], result_types=[x.type])

    def define(base: Any, label: str) -> Any:
        return irdl_op_definition(type(label.title(), (base,), {"name": f"bench.{label}"}))

    add, mul, power, matmul, rms_norm = (define(Binary, n) for n in ("add", "mul", "pow", "matmul", "rms_norm"))
    mean, rsqrt, relu = (define(Unary, n) for n in ("mean", "rsqrt", "relu"))

    @irdl_op_definition
    class Fma(IRDLOperation):
        name = "bench.fma"
        x = operand_def()
        y = operand_def()
        z = operand_def()
        result = result_def()
        traits = traits_def(Pure())

        def __init__(self, x: SSAValue, y: SSAValue, z: SSAValue) -> None:
            super().__init__(operands=[x, y, z], result_types=[x.type])

    class FuseFma(RewritePattern):
        def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
            if not isinstance(op, add):
                return
            for one, other in ((op.x, op.y), (op.y, op.x)):
                product = one.owner
                if isinstance(product, mul) and one.has_one_use():
                    rewriter.replace_op(op, Fma(product.x, product.y, other))
                    rewriter.erase_op(product)
                    return

    def single(value: SSAValue, cls: Any) -> Any:
        return value.owner if isinstance(value.owner, cls) and value.has_one_use() else None

    class FuseRMSNorm(RewritePattern):
        def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
            if not isinstance(op, mul):
                return
            for normed, weight in ((op.x, op.y), (op.y, op.x)):
                product = single(normed, mul)
                if product is None:
                    continue
                for x, factor in ((product.x, product.y), (product.y, product.x)):
                    inverse = single(factor, rsqrt)
                    total = inverse and single(inverse.x, add)
                    average = total and (single(total.x, mean) or single(total.y, mean))
                    square = average and single(average.x, power)
                    if square and square.x is x:
                        rewriter.replace_op(op, rms_norm(x, weight))
                        for dead in (product, inverse, total, average, square):
                            rewriter.erase_op(dead)
                        return

    block = Block(arg_types=[f32] * 5)
    x, a, b, two, eps = block.args
    ops: list[Operation] = []

    def emit(op: Any) -> SSAValue:
        ops.append(op)
        return op.result

    def norm(x: SSAValue) -> SSAValue:
        inverse = emit(rsqrt(emit(add(emit(mean(emit(power(x, two)))), eps))))
        return emit(mul(emit(mul(x, inverse)), a))

    for _ in range(count):
        if workload == "chain":
            x = emit(add(emit(mul(x, a)), b))
        else:
            x = emit(add(x, emit(matmul(norm(x), b))))
            x = emit(add(x, emit(matmul(emit(relu(emit(matmul(norm(x), b)))), b))))
    block.add_ops([*ops, TestOp([x])])
    module = ModuleOp(Region(block))
    rule = FuseFma() if workload == "chain" else FuseRMSNorm()
    walker = PatternRewriteWalker(GreedyRewritePatternApplier([rule], dce_enabled=False))

    def work() -> None:
        walker.rewrite_module(module)
        fused = Fma if workload == "chain" else rms_norm
        made = sum(isinstance(op, fused) for op in block.ops)
        assert made == (count if workload == "chain" else 2 * count), made

    return work


def _tinygrad_fma(x: Any, a: Any, b: Any) -> Any:
    from tinygrad.uop.ops import Ops, UOp

    return UOp(Ops.MULACC, x.dtype, (x, a, b))


def _tinygrad_rms_norm(x: Any, w: Any) -> Any:
    from tinygrad.uop.ops import Ops, UOp

    return UOp(Ops.MAX, x.dtype, (x, w))


def tinygrad_peer(workload: str, count: int) -> Work:
    """tinygrad: `graph_rewrite` with a compiled `PatternMatcher`."""
    from tinygrad.dtype import dtypes
    from tinygrad.uop.ops import Ops, PatternMatcher, UOp, UPat, graph_rewrite

    leaf = lambda number: UOp(Ops.PARAM, dtypes.float, arg=number)
    op = lambda code, *src: UOp(code, dtypes.float, src)
    x, a, b, two, eps = map(leaf, range(5))

    def norm(x: Any) -> Any:
        # EXP2 stands for mean, SIN for rsqrt.
        inverse = op(Ops.SIN, op(Ops.ADD, op(Ops.EXP2, op(Ops.POW, x, two)), eps))
        return op(Ops.MUL, op(Ops.MUL, x, inverse), a)

    for _ in range(count):
        if workload == "chain":
            x = op(Ops.ADD, op(Ops.MUL, x, a), b)
        else:
            # SUB stands for matmul, NEG for relu.
            x = op(Ops.ADD, x, op(Ops.SUB, norm(x), b))
            x = op(Ops.ADD, x, op(Ops.SUB, op(Ops.NEG, op(Ops.SUB, norm(x), b)), b))
    v = UPat.var
    if workload == "chain":
        pattern = UPat(Ops.ADD, src=[UPat(Ops.MUL, src=(v("x"), v("a"))), v("b")])
        matcher = PatternMatcher([(pattern, _tinygrad_fma)])
    else:
        average = UPat(Ops.EXP2, src=(UPat(Ops.POW, src=(v("x"), v())),))
        inverse = UPat(Ops.SIN, src=(UPat(Ops.ADD, src=[average, v()]),))
        normed = UPat(Ops.MUL, src=[v("x"), inverse])
        matcher = PatternMatcher([(UPat(Ops.MUL, src=[normed, v("w")]), _tinygrad_rms_norm)])
    sink = UOp(Ops.SINK, dtypes.void, (x,))

    def work() -> None:
        result = graph_rewrite(sink, matcher)
        fused = Ops.MULACC if workload == "chain" else Ops.MAX
        made = sum(u.op is fused for u in result.toposort())
        assert made == (count if workload == "chain" else 2 * count), made

    return work


def onnxscript_peer(workload: str, count: int) -> Work:
    """onnxscript: a `RewriteRuleSet` over an ONNX IR graph, in which operands stand in the order of the pattern."""
    import onnx_ir as ir
    from onnxscript.rewriter import pattern

    def fma_pattern(op: Any, x: Any, a: Any, b: Any) -> Any:
        return op.Add(op.Mul(x, a), b)

    def fma(op: Any, x: Any, a: Any, b: Any, **_: Any) -> Any:
        return op.Fma(x, a, b, _domain="bench")

    def norm_pattern(op: Any, x: Any, w: Any, two: Any, eps: Any) -> Any:
        mean = op.ReduceMean(op.Pow(x, two))
        return op.Mul(op.Mul(x, op.Rsqrt(op.Add(mean, eps))), w)

    def rms_norm(op: Any, x: Any, w: Any, **_: Any) -> Any:
        return op.RMSNormalization(x, w, _domain="bench")

    inputs = [ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([64])) for n in "xabte"]
    x, a, b, two, eps = inputs
    nodes: list[Any] = []

    def op(kind: str, *operands: Any) -> Any:
        nodes.append(ir.Node("", kind, list(operands)))
        value = nodes[-1].outputs[0]
        value.name = f"v{len(nodes)}"
        return value

    def norm(x: Any) -> Any:
        inverse = op("Rsqrt", op("Add", op("ReduceMean", op("Pow", x, two)), eps))
        return op("Mul", op("Mul", x, inverse), a)

    for _ in range(count):
        if workload == "chain":
            x = op("Add", op("Mul", x, a), b)
        else:
            x = op("Add", x, op("MatMul", norm(x), b))
            x = op("Add", x, op("MatMul", op("Relu", op("MatMul", norm(x), b)), b))
    graph = ir.Graph(inputs, [x], nodes=nodes, opset_imports={"": 23, "bench": 1}, name="bench")
    model = ir.Model(graph, ir_version=10)
    chosen = (fma_pattern, fma) if workload == "chain" else (norm_pattern, rms_norm)
    rules = pattern.RewriteRuleSet([pattern.RewriteRule(*chosen)])

    def work() -> None:
        made = rules.apply_to_model(model)
        assert made == (count if workload == "chain" else 2 * count), made

    return work


PEERS: dict[str, Peer] = {"xdsl": xdsl_peer, "tinygrad": tinygrad_peer, "onnxscript": onnxscript_peer}
