"""The quantize pass: which weights it encodes, which it must leave alone, and that the model still computes."""

from __future__ import annotations

import numpy as np
import pytest

import irlab
from irlab import Context, Module, nn, prim
from irlab.encodings import IntegerEncoding
from irlab.errors import InputError, UsageError
from irlab.ir import GraphBuilder, Value
from irlab.passes.quantize import Quantize
from irlab.passes.quantize.selection import Role, candidates
from irlab.types import bf16, f16, f32
from irlab.weights import Encode

HEAD, TABLE = "lm_head.weight", "embed.weight"


def language_model(element: str = "f32", tied: bool = False, width: int = 64) -> Module:
    """ids -> embedding -> gated mlp -> norm -> head."""
    b = GraphBuilder("lm")
    ids = b.input("ids", "i64", ("batch", "seq"))
    table = b.random_weight(TABLE, element, (40, width), 1)
    h = nn.embedding(ids, table)
    gate, up = (b.random_weight(f"mlp.{n}.weight", element, (96, width), 2) for n in ("gate", "up"))
    down = b.random_weight("mlp.down.weight", element, (width, 96), 3)
    h = prim.add(h, nn.gated_mlp(h, gate, up, down))
    h = nn.rms_norm(h, b.random_weight("norm.weight", element, (width,), 4))
    head = table if tied else b.random_weight(HEAD, element, (40, width), 5)
    b.output(logits=nn.linear(h, head))
    return b.module()


def quantized(module: Module, **options: object) -> dict[str, str]:
    """The elements of all weights after the pass, by name."""
    Quantize(**options).run(module, Context())  # type: ignore[arg-type]
    return {name: str(symbol.type.element) for name, symbol in module.weights.items()}


def logits(module: Module) -> np.ndarray:
    return irlab.evaluate(module, {"ids": np.arange(12).reshape(2, 6)})["logits"].float().numpy()


def test_matrices_are_encoded_and_everything_else_stays() -> None:
    elements = quantized(language_model())
    int4 = "q<int4, sym, group=32, scale=f16>"
    assert elements == {
        TABLE: "f32",
        "mlp.gate.weight": int4,
        "mlp.up.weight": int4,
        "mlp.down.weight": int4,
        "norm.weight": "f32",
        HEAD: int4,
    }


@pytest.mark.parametrize("element", ["f32", "bf16", "f16"])
def test_the_model_still_computes_and_is_valid(element: str) -> None:
    module = language_model(element)
    before = logits(module)
    after_module = irlab.run(module, "quantize{scheme=int8 embeddings=int8}")
    after = logits(after_module)
    assert after_module.graph.outputs["logits"].type is module.graph.outputs["logits"].type
    assert 0 < np.abs(after - before).max() < 0.02 * np.abs(before).max()


def test_options_say_how() -> None:
    elements = quantized(language_model(), scheme="int8", group=16, sym=False, scale="bf16", embeddings="int4")
    assert elements[HEAD] == "q<int8, asym, group=16, scale=bf16>"
    assert elements[TABLE] == "q<int4, asym, group=16, scale=bf16>"


def test_group_0_is_one_scale_to_a_row() -> None:
    assert quantized(language_model(width=50), scheme="int8", group=0)[HEAD] == "q<int8, sym, group=0, scale=f16>"


def test_a_tied_table_is_one_weight_and_follows_the_embedding() -> None:
    assert quantized(language_model(tied=True))[TABLE] == "f32"
    module = language_model("bf16", tied=True)
    elements = quantized(module, embeddings="int8")
    assert elements[TABLE] == "q<int8, sym, group=32, scale=f16>" and HEAD not in elements
    linear, embedding = module.graph.find(nn.Linear)[0], module.graph.find(nn.Embedding)[0]
    assert linear.weight is embedding.weight, "the tie was cut"
    # The table gives f32 once encoded; what follows sees the dtype that it saw before.
    assert embedding.result.type.dtype is f32
    assert [user.result.type.dtype for user in embedding.result.uses] == [bf16]


def test_patterns_exclude_by_name() -> None:
    elements = quantized(language_model(), exclude=("mlp.*", "*head*"), embeddings="int8")
    assert [name for name, element in elements.items() if element.startswith("q<")] == [TABLE]


def test_a_pattern_that_excludes_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"exclude=mpl\.\* matches no weight"):
        quantized(language_model(), exclude=("*head*", "mpl.*"))


def test_a_width_that_is_no_whole_groups_is_refused_by_name_or_kept() -> None:
    with pytest.raises(
        InputError, match=r"'mlp\.gate\.weight': rows of 50 numbers are not whole groups of 32.*indivis"
    ):
        quantized(language_model(width=50))
    ctx = Context()
    module = language_model(width=50)
    Quantize(indivisible="keep").run(module, ctx)
    assert module.weights["mlp.gate.weight"].type.element is f32
    assert str(module.weights["mlp.down.weight"].type.element).startswith("q<")
    assert ctx.record.rules == {"keep-embedding": 1, "keep-indivisible": 3, "encode": 1}


def test_a_width_that_is_no_whole_groups_may_have_smaller_ones() -> None:
    ctx = Context()
    module = language_model(width=48)
    Quantize(indivisible="smaller").run(module, ctx)
    assert str(module.weights["mlp.gate.weight"].type.element) == "q<int4, sym, group=16, scale=f16>"
    assert ctx.record.rules == {"keep-embedding": 1, "smaller-group": 3, "encode": 4}
    with pytest.raises(InputError, match=r"'mlp\.gate\.weight': rows of 50 .* or indivisible=keep\)?$"):
        quantized(language_model(width=50), indivisible="smaller")


def test_weights_with_other_uses_are_left_alone() -> None:
    """A matrix that is also added to something cannot be read encoded."""
    b = GraphBuilder("shared")
    x = b.input("x", "f32", (32, 32))
    shared, own = b.random_weight("shared", "f32", (32, 32)), b.random_weight("own", "f32", (32, 32))
    b.output(y=nn.linear(prim.add(nn.linear(x, shared), shared), own))
    assert [c.symbol.name for c in candidates(b.module().graph)] == ["own"]
    assert quantized(b.module())["shared"] == "f32"


def test_a_weight_used_as_a_bias_is_no_matrix() -> None:
    b = GraphBuilder("bias")
    x = b.input("x", "f32", (4, 32))
    matrix, bias = b.random_weight("matrix", "f32", (32, 32)), b.random_weight("bias", "f32", (32,))
    b.output(y=nn.linear(x, matrix, bias))
    assert [(c.symbol.name, c.role) for c in candidates(b.module().graph)] == [("matrix", Role.MATRIX)]


def test_regions_are_quantized_too_and_ties_reach_into_them() -> None:
    from irlab.ir import Graph
    from irlab.ops.control import if_
    from irlab.types import bool_, tensor

    b = GraphBuilder("regions")
    flag = b.input("flag", "bool", ())
    x = b.input("x", "f32", (4, 32))
    weight = b.random_weight("w", "f32", (32, 32))
    symbol = b.module().graph.weights()["w"]

    def region(change: bool) -> Graph:
        graph = Graph()
        value: Value = graph.input("v", tensor(f32, (4, 32)))
        graph.output(r=nn.linear(value, prim.weight(symbol)) if change else value)
        return graph

    (chosen,) = if_(flag, (x,), region(True), region(False))
    b.output(y=nn.linear(chosen, weight))
    module = b.module()
    assert flag.type.dtype is bool_
    expected = {
        flag: irlab.evaluate(module, {"flag": np.array(flag), "x": np.eye(4, 32, dtype=np.float32)})["y"]
        for flag in (True, False)
    }
    module = irlab.run(module, "quantize{scheme=int8}")
    (operation,) = (op for op in module.graph.ops() if op.region_names)
    inner, outer = operation.regions[0].weights()["w"], module.weights["w"]
    assert inner == outer and outer.type.encoding == IntegerEncoding(8)
    for flag_value, before in expected.items():
        after = irlab.evaluate(module, {"flag": np.array(flag_value), "x": np.eye(4, 32, dtype=np.float32)})["y"]
        assert 0 < float((after - before).abs().max()) < 0.02


def test_what_is_encoded_already_stays_as_it_is() -> None:
    module = language_model()
    once = quantized(module, exclude=("mlp.*",))
    again = quantized(module, scheme="int8")
    assert once[HEAD] == again[HEAD] and again["mlp.up.weight"].startswith("q<int8")
    recipe = module.weights[HEAD].recipe
    assert isinstance(recipe, Encode) and not isinstance(recipe.source, Encode)


def test_a_graph_without_matrices_is_refused() -> None:
    b = GraphBuilder("none")
    x = b.input("x", "f32", (4,))
    b.output(y=prim.neg(x))
    with pytest.raises(InputError, match="no weight of the graph is a matrix"):
        quantized(b.module())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("quantize{scheme=int7}", "scheme"),
        ("quantize{gruop=32}", "did you mean 'group'"),
        ("quantize{sym=maybe}", "true or false"),
        ("quantize{scale=f64}", "scale"),
    ],
)
def test_bad_options_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        irlab.run(language_model(), text)


def test_a_negative_group_is_refused() -> None:
    with pytest.raises(UsageError, match="'group' of quantize takes an integer of at least -1 or none, not '-2'"):
        quantized(language_model(), group=-2)


def test_the_pass_computes_nothing() -> None:
    """Encoding a model that would take a terabyte takes no time: values are made when they are asked for."""
    b = GraphBuilder("large")
    x = b.input("x", "f16", (1, 1 << 19))
    b.output(y=nn.linear(x, b.random_weight("w", "f16", (1 << 20, 1 << 19))))
    module = b.module()
    assert quantized(module)["w"].startswith("q<int4")
    codes = module.weights["w"].recipe.codes(7, 8)
    assert codes["codes"].shape == (1, 1 << 19) and codes["scales"].dtype == np.float16
    assert module.graph.outputs["y"].type.dtype is f16


@pytest.mark.parametrize("damping", [-1, float("nan"), float("inf")])
def test_damping_is_a_number_from_zero_up(damping: float) -> None:
    with pytest.raises(UsageError, match=r"option 'damping' of .* takes a number of at least 0"):
        Quantize(damping=damping)
