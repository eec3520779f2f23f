"""Every row of the ATen tables computes what torch computes, with symbolic sizes, and leaves no call behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from irlab.frontends.torch import lift_module
from irlab.interp import evaluate
from irlab.ops.call import Call


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def lift_and_compare(net, args, dynamic_shapes=None, other_args=None, atol=1e-6):
    """Lift `net` on `args`, evaluate on `other_args` (or the same), compare with torch; gives the IR."""
    module = lift_module(net, args, dynamic_shapes=dynamic_shapes)
    args = other_args or args
    names = [value.name for value in module.graph.inputs]
    found = list(evaluate(module, dict(zip(names, args))).values())
    with torch.no_grad():
        wanted = net.eval()(*args)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours.detach(), theirs, atol=atol, rtol=1e-5, equal_nan=True)
    return module


def x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


ELEMENTWISE = {
    "add": lambda a, b: a + b,
    "add_alpha": lambda a, b: torch.add(a, b, alpha=2),
    "add_scalar": lambda a, b: a + 1,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: 3 - a,
    "mul": lambda a, b: a * b * 2.0,
    "div": lambda a, b: a / (b.abs() + 1),
    "div_floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div_trunc": lambda a, b: torch.div(a * 5, b.abs() + 1, rounding_mode="trunc"),
    "remainder": lambda a, b: torch.remainder(a, 0.7),
    "pow": lambda a, b: a.abs() ** b + a**2 + 2**a,
    "maximum": lambda a, b: torch.maximum(a, b) - torch.minimum(a, b),
    "compare": lambda a, b: ((a < b) | (a >= 0.5)) & ~(a == b) ^ (b <= 0),
    "logical": lambda a, b: torch.logical_not(torch.logical_xor(a > 0, b)),
    "abs_neg_sign": lambda a, b: a.abs() + (-b) + torch.sign(a),
    "exp_log": lambda a, b: torch.exp(a) + torch.log(b.abs() + 1) + torch.log2(b.abs() + 1),
    "roots": lambda a, b: torch.sqrt(a.abs()) + torch.rsqrt(b.abs() + 1) + torch.reciprocal(b.abs() + 1),
    "trigonometry": lambda a, b: torch.sin(a) + torch.cos(b) + torch.tanh(a),
    "erf_sigmoid": lambda a, b: torch.erf(a) + torch.sigmoid(b),
    "rounding": lambda a, b: torch.floor(a) + torch.ceil(b) + torch.round(a * 2),
    "square": lambda a, b: torch.square(a),
    "nan_inf": lambda a, b: torch.isnan(a / (b * 0)) | torch.isinf(a / (b * 0)),
    "where": lambda a, b: torch.where(a > 0, a, 0.0),
    "where_tensors": lambda a, b: torch.where(a > 0, a, b),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, -1.0),
    "clamp": lambda a, b: a.clamp(-0.5, 0.5) + b.clamp(min=0) + a.clamp(max=0.1),
    "relus": lambda a, b: F.relu(a) + F.relu6(b) + F.leaky_relu(a, 0.2) + F.elu(b) + F.hardtanh(a),
    "softplus": lambda a, b: F.softplus(a) + F.softplus(b * 30),
    "hard": lambda a, b: F.hardswish(a) + F.hardsigmoid(b) + F.mish(a),
    "silu_gelu": lambda a, b: F.silu(a) + F.gelu(b) + F.gelu(a, approximate="tanh"),
    "to_bf16": lambda a, b: (a.to(torch.bfloat16) * b.to(torch.bfloat16)).float(),
    "promote_int": lambda a, b: a + b.to(torch.int32) + (a > 0),
    "compare_promotes": lambda a, b: (a > b.to(torch.int64)) & (b.to(torch.int64) < 0.5),
    "int_division": lambda a, b: (a * 9).long() / 4 + (a * 9).long() // 4 + (a * 9).long() % 4,
    "dropout": lambda a, b: F.dropout(a, 0.5, training=False) + b.detach().clone().contiguous(),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name):
    shapes = ({0: "batch"}, {0: "batch"})
    net = Function(lambda a, b: ELEMENTWISE[name](a, b))
    module = lift_and_compare(net, (x(3, 4), x(3, 4) + 0.1), (shapes,), (x(5, 4), x(5, 4) + 0.1))
    assert not module.graph.find(Call)


LAYOUT = {
    "view": lambda a: a.view(a.shape[0], -1).view(a.shape[0], 2, -1),
    "flatten": lambda a: a.flatten(1).unflatten(1, (4, -1)),
    "squeeze": lambda a: a.unsqueeze(1).squeeze(1).unsqueeze(-1),
    "expand": lambda a: a[:, :1].expand(-1, 5, -1),
    "expand_new": lambda a: a.expand(2, *a.shape),
    "permute": lambda a: a.permute(2, 0, 1).transpose(0, 2),
    "transpose": lambda a: a.mT + a.transpose(-1, -2),
    "movedim": lambda a: a.movedim(0, -1),
    "slice": lambda a: a[:, 1:3, ::2] + a[:, -2:, :5:2],
    "slice_symbolic": lambda a: a[:-1] + a[1:],
    "select": lambda a: a[:, 0] + a[:, -1],
    "narrow": lambda a: a.narrow(1, 1, 2),
    "cat": lambda a: torch.cat([a, a * 2, a.long()], dim=1),
    "stack": lambda a: torch.stack([a, -a], dim=1) + torch.stack([a, a], dim=-1).movedim(-1, 1),
    "split": lambda a: a.split(2, dim=1)[1] + a.split([1, 2, 1], dim=1)[1],
    "chunk": lambda a: sum(a.chunk(3, dim=-1)),
    "unbind": lambda a: a.unbind(1)[2],
    "pad": lambda a: F.pad(a, (1, 2, 0, 1), value=3.0),
    "repeat": lambda a: a.repeat(2, 1, 3),
    "repeat_new": lambda a: a.repeat(2, 1, 1, 1),
    "repeat_interleave": lambda a: a.repeat_interleave(2, dim=1),
    "flip": lambda a: a.flip(1, 2),
    "roll": lambda a: a.roll((1, -2), (1, 2)),
    "triangles": lambda a: a.tril() + a.triu(1) + a.tril(-1),
    "gather": lambda a: a.gather(1, (a > 0).long()),
    "index_select": lambda a: a.index_select(1, torch.tensor([2, 0])),
    "index": lambda a: a[:, torch.tensor([[-1, 0], [1, 2]])],
    "index_two": lambda a: a[torch.arange(a.shape[0])[:, None], torch.tensor([-1, 0])],
    "index_inner": lambda a: a[:, torch.tensor([[1], [2]]), torch.tensor([0, -2, 3])],
    "scatter": lambda a: a.scatter(2, a.argmax(2, keepdim=True), 9.0),
    "arange": lambda a: a + torch.arange(a.shape[2]) + torch.arange(1, 13, 2),
    "arange_symbolic": lambda a: a + torch.arange(a.shape[0])[:, None, None],
    "size_as_number": lambda a: a * a.shape[0],
    "fills": lambda a: a + torch.ones_like(a) + torch.full((a.shape[0], 1, 1), 2.0) + a.new_zeros(6),
    "constant_tensor": lambda a: a * torch.tensor([1.0, 2, 3, 4, 5, 6]),
}


@pytest.mark.parametrize("name", LAYOUT)
def test_layout(name):
    net = Function(lambda a: LAYOUT[name](a))
    module = lift_and_compare(net, (x(3, 4, 6),), (({0: "batch"},),), (x(5, 4, 6),))
    assert not module.graph.find(Call)


REDUCTIONS = {
    "sum": lambda a: a.sum(1) + a.sum((0, 1)) + a.sum(),
    "sum_int": lambda a: (a > 0).sum(-1, keepdim=True),
    "mean": lambda a: a.mean(-1, keepdim=True) + a.mean((1, 2), keepdim=True) + a.mean(),
    "prod": lambda a: a.prod(1),
    "extremes": lambda a: a.amax(1) + a.amin((1,)) + a.max() + a.min(),
    "max_dim": lambda a: (*a.max(1),),
    "any_all": lambda a: (a > 1).any(1) & (a > -9).all(1) | (a > 0).any(),
    "argmax": lambda a: a.argmax(1) + a.argmax() + a.argmin(1),
    "cumsum": lambda a: a.cumsum(1) + (a > 0).cumsum(0),
    "topk": lambda a: (*a.topk(2, dim=1),),
    "variance": lambda a: a.var(1) + a.std(1, correction=0) + a.var(-1, correction=0, keepdim=True).squeeze(-1)[:, :1],
    "var_mean": lambda a: (*torch.var_mean(a, 2, correction=0),),
    "norms": lambda a: a.norm(dim=-1) + torch.linalg.vector_norm(a, 1, dim=-1) + F.normalize(a, dim=-1).sum(-1),
    "logsumexp": lambda a: a.logsumexp(1),
    "softmax": lambda a: a.softmax(-1) + a.softmax(1) + a.log_softmax(1),
    "softmax_dtype": lambda a: a.to(torch.bfloat16).softmax(-1, dtype=torch.float32),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name):
    net = Function(lambda a: REDUCTIONS[name](a))
    module = lift_and_compare(net, (x(3, 4, 6),), (({0: "batch"},),), (x(5, 4, 6),))
    assert not module.graph.find(Call)


MODULES = {
    "linear": (nn.Linear(6, 5), (3, 4, 6)),
    "linear_1d": (nn.Linear(6, 5, bias=False), (3, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 12)),
    "conv2d": (nn.Conv2d(4, 6, (3, 5), padding=(1, 2), dilation=(2, 1), groups=2), (3, 4, 9, 9)),
    "conv_same": (nn.Conv2d(4, 6, 3, padding="same"), (3, 4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2), (3, 2, 4, 4, 4)),
    "pools": (nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)), (3, 2, 8, 8)),
    "avg_pool_uncounted": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (3, 2, 8, 8)),
    "adaptive": (nn.Sequential(nn.AdaptiveAvgPool2d((4, 2)), nn.AdaptiveAvgPool2d(1)), (3, 2, 8, 8)),
    "batch_norm": (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), (3, 4, 5, 5)),
    "batch_norm_plain": (nn.BatchNorm1d(4, affine=False), (3, 4)),
    "group_norm": (nn.GroupNorm(2, 4), (3, 4, 5, 5)),
    "layer_norm": (nn.LayerNorm(6), (3, 4, 6)),
    "layer_norm_plain": (nn.LayerNorm(6, elementwise_affine=False), (3, 4, 6)),
    "rms_norm": (nn.RMSNorm(6), (3, 4, 6)),
}


@pytest.mark.parametrize("name", MODULES)
def test_module(name):
    net, shape = MODULES[name]
    with torch.no_grad():
        for index, values in enumerate([*net.parameters(), *net.buffers()]):
            if values.is_floating_point():
                values.copy_(0.5 + torch.rand(values.shape, generator=torch.Generator().manual_seed(index)))
    module = lift_and_compare(net, (x(*shape),), ({0: "batch"},), (x(5, *shape[1:]),), atol=1e-5)
    assert not module.graph.find(Call)


PRODUCTS = {
    "matmul": (lambda a, b: a @ b, (3, 4, 6), (3, 6, 2)),
    "matmul_broadcast": (lambda a, b: a @ b, (3, 4, 6), (6, 2)),
    "vectors": (lambda a, b: a @ b, (3, 6), (6,)),
    "row": (lambda a, b: b @ a, (6, 3), (6,)),
    "addmm": (lambda a, b: torch.addmm(a.sum(0)[:2], a, b, beta=2, alpha=3), (3, 6), (6, 2)),
    "bmm": (torch.bmm, (3, 4, 6), (3, 6, 2)),
    "einsum": (lambda a, b: torch.einsum("bik,kj->bij", a, b), (3, 4, 6), (6, 2)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name):
    function, *shapes = PRODUCTS[name]
    module = lift_and_compare(Function(lambda a, b: function(a, b)), tuple(x(*s) for s in shapes), atol=1e-5)
    assert not module.graph.find(Call)
