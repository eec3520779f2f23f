"""What all structural passes state alike: what they come before, and whether they are there to save work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Module, calibration
from irlab.calibration import Sample
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.instruments import VerifyEach
from irlab.passmgr import Context, Instrument, PassManager, PassRecord
from irlab.quality import EvaluateEach, Quality, quality
from irlab.schedule import build_pipeline, configure
from irlab.speed import left_out
from irlab.sweep import shared
from irlab.walk import Walk

ENCODERS = ("quantize", "mixed-precision{bpw=4}", "share-weights", "hash-weights")
CHANGES = (
    "sparsify",
    "low-rank",
    "tie-layers{groups=0-1}",
    "prune-neurons{ratio=0.5}",
    "prune-heads{ratio=0.5}",
    "prune-hidden{ratio=0.5}",
    "prune-channels{ratio=0.5}",
    "drop-layers{count=1}",
)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("change", CHANGES)
def test_codes_come_after_what_changes_numbers(encoder: str, change: str) -> None:
    """Refused before anything is computed: none of these passes has calibration data here."""
    with pytest.raises(UsageError, match=r"cannot run after .*codes"):
        irlab.run(irlab.load("demo"), f"fuse,{encoder},{change}")


@pytest.mark.parametrize("change", ["drop-layers{count=1}", "prune-hidden{ratio=0.5}", "dynamic-sparsity"])
def test_who_needs_calibration_data_is_named(change: str) -> None:
    with pytest.raises(InputError, match=rf"{change.split('{')[0]}: calibration data is needed"):
        irlab.run(irlab.load("demo"), change)


def test_what_saves_work_is_what_measure_speed_leaves_out() -> None:
    saving = ("sparsify", "low-rank", "dynamic-sparsity", "drop-layers{count=1}", "prune-hidden{ratio=0.5}")
    for text in (*saving, "prune-vocab{keep=words.txt}", "prune-neurons{ratio=0.5}", "prune-heads{ratio=0.5}"):
        passes = build_pipeline(f"{text},quantize")
        assert [step.name for step in left_out(passes)] == [text.split("{")[0]]
    for text in ("tie-layers{groups=0-1}", "share-weights", "hash-weights"):
        assert not build_pipeline(text)[0].saves_work, "it saves storage only"


@pytest.mark.parametrize(
    "start",
    ["sparsify{", "low-rank{", "share-weights{", "hash-weights{", "drop-layers{count=1 ", "prune-heads{ratio=0.5 "],
)
@pytest.mark.parametrize("damping", ["-1", "nan"])
def test_a_damping_that_makes_no_sense_is_refused(start: str, damping: str) -> None:
    with pytest.raises(UsageError, match=r"option 'damping' of .* takes a number of at least 0"):
        build_pipeline(f"{start}damping={damping}}}")


LATE = {
    "dynamic-sparsity,prune-hidden{ratio=0.25}": "prune-hidden cannot run after dynamic-sparsity",
    "dynamic-sparsity,rotate": "rotate cannot run after dynamic-sparsity",
    "share-weights,rotate": "rotate cannot run after share-weights",
    "hash-weights,smooth-quant": "smooth-quant cannot run after hash-weights",
    "tie-layers{groups=0-1},rotate": "rotate cannot run after tie-layers",
    "drop-layers{count=1},tie-layers{groups=0-1}": "tie-layers cannot run after drop-layers",
    "smooth-quant,heal{steps=1}": "no pass has changed what the model computes",
    "prune-neurons{ratio=0.5},correct": "no matrix is encoded",
    "prune-neurons{ratio=0.5 multiple=1},prune-hidden{ratio=0.3 multiple=1},quantize{scheme=int4}": "not whole groups",
    "sparsify,heal{steps=1 data=missing.txt}": "missing.txt",
}
"""What only the second pass can refuse."""


@pytest.mark.parametrize("pipeline", LATE)
def test_what_cannot_work_is_said_before_anything_is_computed(
    pipeline: str, module: Module, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Walk, "outputs", lambda *_: pytest.fail("a layer was run"))
    with pytest.raises((InputError, UsageError), match=LATE[pipeline]):
        irlab.run(module, pipeline, calibration=text, calibration_length=16, cache_dir=tmp_path)


# Orders that work

TEXT = "Once upon a time there was a little girl who lived in a house near the forest. "


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "story.txt"
    file.write_text(TEXT * 40, "utf-8")
    return file


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    """A tiny Llama with the tokenizer of the demo model."""
    directory = tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama-tied", vocab_size=1024)
    for file in (Path(irlab.__file__).parent / "demo").glob("tokenizer*.json"):
        (directory / file.name).write_bytes(file.read_bytes())
    return irlab.run(irlab.load(str(directory)), "fuse")


Compose = Callable[..., "tuple[Module, list[PassRecord]]"]


@pytest.fixture
def compose(module: Module, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """Runs a pipeline on the tiny model, on short pieces of text in small batches."""
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 64)

    def run(
        pipeline: str, source: object = None, *watch: Callable[[Context], Instrument]
    ) -> tuple[Module, list[PassRecord]]:
        changed = module.clone()
        sample = Sample(str(text) if source is None else source, 256, 16)
        ctx = Context(calibration=sample, cache_dir=tmp_path / "cache")
        manager = PassManager(build_pipeline(pipeline), ctx, (VerifyEach(), *(make(ctx) for make in watch)))
        manager.run(changed)
        return changed, manager.records

    return run


def test_passes_share_a_sweep_where_they_can() -> None:
    def swept(text: str) -> list[str]:
        return [str(step) for step in shared(configure(text))]

    joint = "sparsify,quantize{method=gptq},correct"
    assert swept(joint) == [joint]
    # What was read before cannot be compared with what is read once channels are gone or scaled.
    for first in ("prune-neurons{ratio=0.5}", "prune-heads{ratio=0.5}", "smooth-quant"):
        assert swept(f"{first},{joint}") == [first, joint]
        assert swept(f"{first},quantize{{method=gptq}}") == [f"{first},quantize{{method=gptq}}"]
    assert swept("prune-heads{ratio=0.5},prune-neurons{ratio=0.5},sparsify") == [
        "prune-heads{ratio=0.5},prune-neurons{ratio=0.5}",
        "sparsify",
    ]


def test_what_prunes_comes_before_what_makes_up_for_errors(compose: Compose) -> None:
    pruned, _ = compose("prune-neurons{ratio=0.5 multiple=1},sparsify{sparsity=0.25}")
    down = pruned.weights["model.layers.1.mlp.down_proj.weight"]
    assert down.type.shape == (64, 64)
    assert (as_f32(down.recipe.read()) == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_scaled_channels_are_fitted_to_what_they_were(compose: Compose, module: Module, text: Path) -> None:
    batches = Sample(str(text), 256, 16).batches(module)
    plain, smooth = (
        quality(compose(f"{first}sparsify{{sparsity=0.5}}")[0], batches, Context(), module).kl
        for first in ("", "smooth-quant,")
    )
    assert plain is not None and smooth is not None and smooth < 1.5 * plain


@pytest.mark.parametrize("first", ["smooth-quant", "prune-heads{ratio=0.5}", "prune-neurons{ratio=0.5 multiple=1}"])
@pytest.mark.parametrize("then", ["prune-heads{ratio=0.5}", "prune-neurons{ratio=0.5 multiple=1}", "smooth-quant"])
def test_passes_of_one_sweep_change_shapes_and_scales(compose: Compose, first: str, then: str) -> None:
    changed, _ = compose(f"{first},{then},quantize{{scheme=int8 method=gptq}}")
    shapes = {name.rpartition("layers.1.")[2]: s.type.shape for name, s in changed.weights.items()}
    assert shapes["mlp.down_proj.weight"] == (64, 64 if "neurons" in first + then else 128)
    heads = 1 / (1 + (first + then).count("heads"))
    if first != then:
        assert shapes["self_attn.o_proj.weight"] == (64, 64 * heads)


def test_a_weight_of_several_layers_is_changed_once(compose: Compose) -> None:
    """By the first one that reads it: the next would take what is left of it for the original."""
    tied, _ = compose("tie-layers{groups=0-1},sparsify{sparsity=0.5}")
    values = as_f32(tied.weights["model.layers.0.mlp.down_proj.weight"].recipe.read())
    assert (values == 0).mean() == pytest.approx(0.5, abs=0.01)
    thin, _ = compose("tie-layers{groups=0-1},low-rank{rank=8 exclude=*embed*}")
    names = {name.partition("layers.")[2] for name in thin.weights if "down_proj" in name}
    assert names == {f"{layer}.mlp.down_proj.weight.{side}" for layer in (0, 2) for side in "ab"}


def test_heal_reads_the_ids_that_are_left(compose: Compose, text: Path) -> None:
    keep = f'prune-vocab{{keep="{text}"}}'
    found: dict[str, Quality] = {}
    pipeline = f"prune-neurons{{ratio=0.75 multiple=1}},{keep},heal{{steps=40 rate=0.001 hidden=0}}"
    healed, records = compose(
        pipeline, None, lambda ctx: EvaluateEach(Sample(str(text), 128, 16), ctx, found.__setitem__)
    )
    losses = records[-1].series["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert healed.weights["model.embed_tokens.weight"].type.shape[0] < 600
    before, pruned, fewer, after = found.values()
    assert before.kl is None and pruned.kl is not None and fewer.kl is not None and after.kl is not None
    assert fewer.kl == pytest.approx(pruned.kl, rel=0.2) and after.kl < 0.8 * fewer.kl


def test_ids_for_calibration_follow_those_of_the_model(compose: Compose, module: Module, text: Path) -> None:
    keep = f'prune-vocab{{keep="{text}"}}'
    ids = np.concatenate([b["input_ids"] for b in Sample(str(text), 256, 16).batches(module)])
    name = "model.layers.1.mlp.down_proj.weight"

    def fitted(source: object) -> np.ndarray:
        return compose(f"{keep},sparsify", source)[0].weights[name].recipe.read()

    np.testing.assert_array_equal(fitted(ids), fitted(None))
    # A piece with a token that is gone is left out.
    np.testing.assert_array_equal(fitted(np.concatenate([np.full((1, 16), 900), ids[1:]])), fitted(ids[1:]))
    with pytest.raises(InputError, match="every piece of the calibration ids has tokens that are gone"):
        compose(f"{keep},sparsify", np.full((8, 16), 900))
