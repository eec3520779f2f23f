"""What all structural passes state alike: what they come before, and whether they are there to save work."""

from __future__ import annotations

import pytest

import irlab
from irlab.errors import InputError, UsageError
from irlab.schedule import build_pipeline
from irlab.speed import left_out

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


def test_heal_comes_before_the_ids_change() -> None:
    with pytest.raises(UsageError, match="heal cannot run after prune-vocab"):
        irlab.run(irlab.load("demo"), "prune-vocab{keep=words.txt},heal{steps=1}")
