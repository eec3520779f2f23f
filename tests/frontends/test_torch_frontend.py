"""Whole modules through torch.export: a CNN, a small ViT; names, places, sizes, mutation, opaque calls, errors."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from torch import nn

from irlab.dims import symbol
from irlab.errors import InputError
from irlab.frontends.torch import Torch, lift_module
from irlab.interp import evaluate
from irlab.ir import Weight
from irlab.ops import nn as irnn
from irlab.ops import prim
from irlab.ops.call import Call
from irlab.target import LoadRequest
from irlab.text import parse_module


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1), nn.Hardswish())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16, 10)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image):
        x = self.pool(torch.relu(self.norm(self.stem(image))))
        x = torch.cat([x, self.block(x)], dim=1)[:, 8:]
        return self.head(x.mean((2, 3)))


class ViT(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.ModuleList([layer, nn.TransformerEncoderLayer(width, 2, 48, batch_first=True)])
        self.head = nn.Linear(width, 5)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(image.shape[0], -1, -1), x], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


@pytest.mark.parametrize(("make", "size"), [(CNN, 16), (ViT, 16)])
def test_vision_models_compute_what_torch_computes(make, size):
    torch.manual_seed(0)
    net = make().eval()
    module = lift_module(net, (torch.randn(2, 3, size, size),), dynamic_shapes={"image": {0: "batch"}})
    assert not module.graph.find(Call)
    assert str(module.graph.inputs[0].type) == f"f32[batch, 3, {size}, {size}]"
    images = torch.randn(5, 3, size, size)
    with torch.no_grad():
        wanted = net(images)
    found = evaluate(module, {"image": images})["output"]
    torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-5)


def test_vit_attention_is_one_op():
    module = lift_module(ViT(), (torch.randn(2, 3, 16, 16),), dynamic_shapes={"image": {0: "batch"}})
    attention = module.graph.find(irnn.Attention)
    assert len(attention) == 2
    assert not attention[0].causal


def test_names_and_places_come_from_the_module():
    module = lift_module(ViT(), (torch.randn(2, 3, 16, 16),))
    assert "layers.0.linear1.weight" in module.weights
    paths = {op.loc.path for op in module.graph.find(irnn.Linear) if op.loc}
    assert "head" in paths
    conv = module.graph.find(prim.Conv)[0]
    assert conv.loc is not None
    assert conv.loc.source.startswith("test_torch_frontend.py:")


def test_sizes_are_named_and_arithmetic_on_them_is_resolved():
    class Net(nn.Module):
        def forward(self, x, y):
            half = x.shape[1] // 2
            return x[:, :half] + y[:, half : 2 * half]

    shapes = {"x": {1: "length"}, "y": {1: torch.export.Dim.AUTO}}
    module = lift_module(Net(), (torch.randn(2, 9), torch.randn(2, 9)), dynamic_shapes=shapes)
    assert module.graph.inputs[0].type.shape == (2, symbol("length"))
    assert str(module.graph.outputs["output"].type) == "f32[2, (length // 2)]"
    x, y = torch.randn(2, 13), torch.randn(2, 13)
    torch.testing.assert_close(evaluate(module, {"x": x, "y": y})["output"], Net()(x, y))


def test_a_tied_weight_is_one_symbol():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    net = Tied()
    module = lift_module(net, (torch.tensor([[1, 2]]),))
    assert list(module.weights) == ["embed.weight"]
    assert sum(module.graph.find(Weight)[0].result.uses.values()) == 2


def test_weights_are_shared_not_copied():
    net = nn.Linear(3, 2, bias=False)
    module = lift_module(net, (torch.randn(1, 3),))
    with torch.no_grad():
        net.weight[0, 0] = 42
    assert module.weights["weight"].recipe.read()[0, 0] == 42


def test_half_precision_weights():
    net = nn.Linear(3, 2).to(torch.bfloat16)
    module = lift_module(net, (torch.randn(1, 3, dtype=torch.bfloat16),))
    assert str(module.weights["weight"].type) == "bf16[2, 3]"
    values = module.weights["weight"].recipe.read().astype("float32")
    assert torch.equal(torch.from_numpy(values), net.weight.detach().float())


def test_mutation_becomes_functional():
    class Net(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, 0] = 5.0
            y += 1
            return y.relu_()

    x = torch.randn(2, 3)
    module = lift_module(Net(), (x,))
    torch.testing.assert_close(evaluate(module, {"x": x})["output"], Net()(x))


def test_an_unknown_op_is_kept_as_a_call_that_runs_and_round_trips():
    class Net(nn.Module):
        def forward(self, x):
            values, order = torch.sort(x, dim=-1, descending=True, stable=True)
            return values * 2, order

    module = lift_module(Net(), (torch.randn(2, 5),), dynamic_shapes={"x": {0: "batch"}})
    (op,) = module.graph.find(Call)
    assert op.target.startswith("aten.sort.")
    again = parse_module(str(module))
    x = torch.randn(4, 5)
    for candidate in (module, again):
        for found, wanted in zip(evaluate(candidate, {"x": x}).values(), Net()(x)):
            assert torch.equal(found, wanted)


def test_an_overload_with_other_arguments_is_kept_as_a_call():
    class Net(nn.Module):
        def forward(self, x):
            return torch.round(x, decimals=2)

    x = torch.randn(6)
    module = lift_module(Net(), (x,))
    assert [op.target for op in module.graph.find(Call)] == ["aten.round.decimals"]
    assert torch.equal(evaluate(module, {"x": x})["output"], torch.round(x, decimals=2))


def test_keyword_arguments_and_several_outputs():
    class Net(nn.Module):
        def forward(self, x, *, scale):
            return {"scaled": x * scale, "sum": x.sum()}

    x, scale = torch.randn(2, 3), torch.randn(3)
    module = lift_module(Net(), (x,), {"scale": scale})
    found = evaluate(module, {"x": x, "scale": scale})
    assert list(found) == ["output", "output1"]
    torch.testing.assert_close(found["output"], x * scale)


def test_one_example_tensor_given_twice_is_two_inputs():
    class Net(nn.Module):
        def forward(self, x, y):
            return x - 2 * y

    x, y = torch.randn(3), torch.randn(3)
    module = lift_module(Net(), (x, x))
    torch.testing.assert_close(evaluate(module, {"x": x, "y": y})["output"], x - 2 * y)


def test_dropout_vanishes_and_the_module_stays_in_training_mode():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    module = lift_module(net, (torch.randn(1, 3),))
    assert net.training
    assert len(module.graph) == 4  # the linear, its weight and bias, and the return: dropout is gone


def test_a_module_that_cannot_be_traced_is_refused_in_one_line():
    class Net(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(InputError, match=r"torch\.export cannot trace Net") as error:
        lift_module(Net(), (torch.randn(3),))
    assert "\n" not in str(error.value)


def test_complex_numbers_are_refused_by_name():
    class Net(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).abs()

    with pytest.raises(InputError, match=r"complex64"):
        lift_module(Net(), (torch.randn(4),))


def test_python_source(tmp_path, monkeypatch):
    (tmp_path / "made_for_irlab.py").write_text(
        textwrap.dedent("""
        import torch
        def make():
            return torch.nn.Linear(4, 2), (torch.randn(3, 4),), {"input": {0: "batch"}}
        def wrong():
            return 7
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    frontend = Torch()
    assert frontend.accepts("python:made_for_irlab:make")
    module = frontend.load("python:made_for_irlab:make", LoadRequest())
    assert str(module.graph.outputs["output"].type) == "f32[batch, 2]"
    for source, reason in {
        "python:made_for_irlab:wrong": "returned int",
        "python:made_for_irlab:absent": "has no absent",
        "python:no_such_package_here:make": "No module named",
        "python:made_for_irlab": "names no callable",
    }.items():
        with pytest.raises(InputError, match=reason):
            frontend.load(source, LoadRequest())
    sys.modules.pop("made_for_irlab", None)
