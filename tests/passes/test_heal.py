"""heal: nearer to what the model was, in whole matrices and in adapters, resumable, and where refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Context, Module, Pass, calibration
from irlab.calibration import Sample
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.passes import heal as package
from irlab.passes.heal import Heal, distillation, training
from irlab.passes.heal import heal as heal_module
from irlab.passmgr import PassManager, PassRecord
from irlab.quality import quality
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol

STEPS = 12


@dataclass(frozen=True)
class ZeroSmall(Pass, name="zero-small", exactness="lossy"):
    """Half of the numbers of every gate, up and down matrix become zero."""

    def run(self, module: Module, ctx: Context) -> None:
        made = {}
        for name, symbol in module.weights.items():
            if "mlp" in name:
                values = symbol.recipe.read().copy()
                values[np.abs(values) < np.median(np.abs(values))] = 0
                made[name] = WeightSymbol(name, Array(symbol.type, values))
        replace_weights(module.graph, made)


@pytest.fixture(scope="module")
def original() -> Module:
    return irlab.run(irlab.load("demo"), "fuse,cast{dtype=f32}")


@pytest.fixture(scope="module")
def ids(original: Module) -> np.ndarray:
    from irlab.decoder import sample

    return sample(original, 32, 48, seed=3)


Healed = Callable[..., tuple[Module, PassRecord]]


@pytest.fixture
def healed(original: Module, ids: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Healed:
    """Runs passes and heal on the demo model, in small batches, and gives it with the last record."""
    monkeypatch.setattr(calibration, "BATCH_TOKENS", 192)

    def run(*passes: Pass, cache: str = "cache", sample: object = None) -> tuple[Module, PassRecord]:
        module = original.clone()
        ctx = Context(calibration=Sample(ids if sample is None else sample, 1 << 20, 48), cache_dir=tmp_path / cache)
        manager = PassManager(passes, ctx)
        manager.run(module)
        return module, manager.records[-1]

    return run


def loss(module: Module, original: Module, ids: np.ndarray) -> float:
    found = quality(module, [{"input_ids": ids[:8]}], Context(), original)
    assert found.kl is not None
    return found.kl


@pytest.mark.parametrize("options", [{}, {"lora": True, "rank": 4}, {"hidden": 0.0, "text": 0.1}])
def test_a_healed_model_is_nearer_to_what_it_was(
    original: Module, ids: np.ndarray, healed: Healed, options: dict[str, object]
) -> None:
    pruned, _ = healed(ZeroSmall())
    module, record = healed(ZeroSmall(), Heal(steps=STEPS, **options))  # type: ignore[arg-type]
    assert loss(module, original, ids) < 0.8 * loss(pruned, original, ids)
    assert record.metrics["held_out_kl_after"] < 0.8 * record.metrics["held_out_kl_before"]
    assert len(record.series["loss"]) == STEPS
    assert [s.type for s in module.weights.values()] == [s.type for s in original.weights.values()]


def test_what_was_pruned_stays_pruned(healed: Healed) -> None:
    pruned, _ = healed(ZeroSmall())
    module, _ = healed(ZeroSmall(), Heal(steps=2, lora=True, rank=4))
    for name, symbol in pruned.weights.items():
        if "mlp" in name:
            before, after = as_f32(symbol.recipe.read()), as_f32(module.weights[name].recipe.read())
            assert (after[before == 0] == 0).all() and not np.array_equal(before, after)


def test_each_layer_can_be_computed_again_instead_of_kept(healed: Healed) -> None:
    _, kept = healed(ZeroSmall(), Heal(steps=3), cache="a")
    _, again = healed(ZeroSmall(), Heal(steps=3, recompute=True), cache="b")
    assert kept.series == again.series


def test_encoded_weights_stay_and_the_others_learn_to_live_with_them(
    original: Module, ids: np.ndarray, healed: Healed
) -> None:
    from irlab.passes.quantize import Quantize

    quantized, _ = healed(Quantize(scheme="int2"))
    module, _ = healed(Quantize(scheme="int2"), Heal(steps=STEPS))
    encoded = [name for name, s in quantized.weights.items() if s.type.encoding is not None]
    assert encoded and all(module.weights[n] is not None for n in encoded)
    for name in encoded:
        assert np.array_equal(module.weights[name].recipe.read(), quantized.weights[name].recipe.read())
    assert loss(module, original, ids) < loss(quantized, original, ids)


def test_a_run_that_was_killed_ends_in_the_same_bits(healed: Healed, monkeypatch: pytest.MonkeyPatch) -> None:
    through, _ = healed(ZeroSmall(), Heal(steps=6), cache="through")
    monkeypatch.setattr(training, "_KEEP_SECONDS", 0.0)
    step = training.Training._step

    def killed(self: training.Training, optimizer: object) -> None:
        if len(self.losses) == 4:
            raise KeyboardInterrupt
        step(self, optimizer)  # type: ignore[arg-type]

    monkeypatch.setattr(training.Training, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        healed(ZeroSmall(), Heal(steps=6), cache="killed")
    monkeypatch.setattr(training.Training, "_step", step)
    resumed, record = healed(ZeroSmall(), Heal(steps=6), cache="killed")
    assert len(record.series["loss"]) == 6
    for name, symbol in through.weights.items():
        assert np.array_equal(symbol.recipe.read(), resumed.weights[name].recipe.read())


def test_what_was_healed_is_not_healed_again(healed: Healed, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = healed(ZeroSmall(), Heal(steps=2))
    monkeypatch.setattr(distillation, "distil", lambda *args: pytest.fail("trained again"))
    second, record = healed(ZeroSmall(), Heal(steps=2))
    assert len(record.series["loss"]) == 2
    assert all(np.array_equal(s.recipe.read(), second.weights[name].recipe.read()) for name, s in first.weights.items())


def test_a_teacher_may_be_another_model(healed: Healed) -> None:
    _, record = healed(Heal(steps=1, teacher="demo"))
    assert record.metrics["held_out_kl_before"] < 1e-6


def test_it_trains_on_the_whole_of_a_text_of_its_own(original: Module, healed: Healed, tmp_path: Path) -> None:
    from irlab.parity import load_tokenizer

    tokenizer, text = load_tokenizer(original), "One day Tom saw a big red ball. " * 100
    assert tokenizer is not None
    (tmp_path / "story.txt").write_text(text)
    _, record = healed(ZeroSmall(), Heal(steps=1, data=str(tmp_path / "story.txt")))
    tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert 0.9 * tokens < record.metrics["text_tokens"] <= 1.1 * tokens


def test_where_nothing_was_changed_there_is_no_teacher(healed: Healed) -> None:
    with pytest.raises(InputError, match="no pass has changed") as caught:
        healed(Heal(steps=1))
    assert "teacher=MODEL" in caught.value.hint


def test_too_little_text_is_refused(healed: Healed, ids: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"heal: 240 tokens are too few to train on"):
        healed(ZeroSmall(), Heal(), sample=ids[:5])


def test_without_text_it_says_what_is_missing(original: Module) -> None:
    with pytest.raises(InputError, match="calibration data is needed"):
        PassManager((ZeroSmall(), Heal()), Context()).run(original.clone())


def test_training_that_does_not_fit_is_refused_before_it_starts(
    healed: Healed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heal_module, "_free_bytes", lambda: 1_000_000)
    with pytest.raises(InputError, match=r"training takes about 0\.\d GB, 0\.0 GB are free") as caught:
        healed(ZeroSmall(), Heal())
    assert "lora=true" in caught.value.hint


def test_a_loss_that_is_no_number_says_so(healed: Healed) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step") as caught:
        healed(ZeroSmall(), Heal(steps=6, rate=1e30))
    assert "smaller rate" in caught.value.hint


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"rank": 0}, {"logits": -1.0}, {"logits": 0.0, "hidden": 0.0}, {"temperature": 0.0}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="heal"):
        Heal(**options)  # type: ignore[arg-type]


def test_the_package_shows_the_pass() -> None:
    assert package.Heal is Heal
