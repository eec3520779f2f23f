"""How are convolution and pooling said in ONNX?"""

from __future__ import annotations

from typing import Final

from irlab.backends.onnx.emitter import Emitter, Lowering
from irlab.ir import Op
from irlab.ops import prim


def _conv(op: prim.Conv, e: Emitter) -> None:
    bias = e[op.bias] if op.bias is not None else ""
    e.result(
        op,
        "Conv",
        e[op.x],
        e[op.weight],
        bias,
        strides=op.stride,
        pads=(*op.padding, *op.padding),
        dilations=op.dilation,
        group=op.groups,
    )


def _max_pool(op: prim.MaxPool, e: Emitter) -> None:
    e.result(
        op,
        "MaxPool",
        e[op.x],
        kernel_shape=op.kernel,
        strides=op.stride,
        pads=(*op.padding, *op.padding),
        dilations=op.dilation,
    )


def _avg_pool(op: prim.AvgPool, e: Emitter) -> None:
    e.result(
        op,
        "AveragePool",
        e[op.x],
        kernel_shape=op.kernel,
        strides=op.stride,
        pads=(*op.padding, *op.padding),
        count_include_pad=int(op.count_padding),
    )


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    prim.Conv: _conv,
    prim.MaxPool: _max_pool,
    prim.AvgPool: _avg_pool,
}
