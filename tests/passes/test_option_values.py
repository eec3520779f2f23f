"""Every number that a pass or target takes: what makes no sense is refused, nothing is silently left undone."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Context, Module, registry
from irlab.calibration import Sample
from irlab.errors import InputError, IrlabError, UsageError
from irlab.options import Bounds, Configurable, Option
from irlab.passmgr import PassManager
from irlab.schedule import build_pipeline

BESIDE: Final = {
    "drop-layers": "count=1",
    "mixed-precision": "bpw=5",
    "prune-channels": "ratio=0.5",
    "prune-heads": "ratio=0.5",
    "prune-hidden": "ratio=0.25",
    "prune-neurons": "ratio=0.25",
}
"""What else such a pass must be told; left out where the option itself tells it."""

GOALS: Final = {"count", "indices", "size", "bpw", "max-kl", "ratio", "speedup"}

BEFORE: Final = {"correct": "quantize", "heal": "sparsify{method=magnitude}"}
"""What gives a pass something to do."""

AFTER: Final = {"repeat": "(prune-neurons{ratio=0.25 score=magnitude refit=false})"}

VALUES: Final = ("-1", "0", "nan", "inf", "1000000000", "0.5", "1e-30")


def numeric(cls: type[Configurable]) -> Iterator[Option]:
    for option in cls.options():
        if any(hint in (int, float) for hint in leaves(option.type)):
            yield option


def leaves(hint: Any) -> Iterator[Any]:
    """The plain types in a type; sizes are integers."""
    if isinstance(hint, typing.NewType):
        yield hint.__supertype__
    elif typing.get_origin(hint) is typing.Annotated:
        yield from leaves(typing.get_args(hint)[0])
    elif parts := typing.get_args(hint):
        for part in parts:
            yield from leaves(part)
    else:
        yield hint


def bounds(hint: Any) -> Iterator[Bounds]:
    for part in typing.get_args(hint):
        if isinstance(part, Bounds):
            yield part
        else:
            yield from bounds(part)


CLASSES: Final = [registry.lookup(group, name) for group in ("passes", "backends") for name in registry.names(group)]
OPTIONS: Final = [(cls, option) for cls in CLASSES for option in numeric(cls)]
IDS: Final = [f"{cls.name}-{option.text_name}" for cls, option in OPTIONS]


def taken(cls: type[Configurable], option: Option) -> Iterator[str]:
    """The values that the option takes."""
    beside = {} if option.text_name in GOALS else dict([BESIDE[cls.name].split("=")] if cls.name in BESIDE else [])
    for text in VALUES:
        try:
            cls.configure(beside | {option.text_name: text})
        except UsageError:
            continue
        yield text


@pytest.mark.parametrize(("cls", "option"), OPTIONS, ids=IDS)
def test_every_number_has_its_bounds_and_is_held_to_them(cls: type[Configurable], option: Option) -> None:
    assert list(bounds(option.type)), "say with Annotated[..., Bounds(...)] which numbers make sense"
    assert not {"nan", "inf"} & set(taken(cls, option))
    (bound,) = bounds(option.type)
    for text in VALUES:
        if not math.isfinite(float(text)) or float(text) in bound:
            continue
        with pytest.raises(UsageError, match=f"option '{option.text_name}' of {cls.name} takes") as error:
            cls.configure({option.text_name: text})
        assert "\n" not in str(error.value) and error.value.exit_status == 2


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    directory = tiny_model(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=2)
    return irlab.run(irlab.load(directory), "fuse")


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, (8, 32))


def pipeline(cls: type[Configurable], option: Option, text: str) -> str:
    beside = BESIDE.get(cls.name, "") if option.text_name not in GOALS else ""
    step = f"{cls.name}{{{beside} {option.text_name}={text}}}{AFTER.get(cls.name, '')}"
    return ",".join(filter(None, [BEFORE.get(cls.name), step]))


PASSES: Final = [(cls, option) for cls, option in OPTIONS if cls.name in registry.names("passes")]


@pytest.mark.parametrize(
    "text",
    [
        pipeline(cls, option, text)
        for cls, option in PASSES
        for text in taken(cls, option)
        if text != "0.5" and not (option.text_name == "steps" and text == "1000000000")  # it would be taken at its word
    ],
)
def test_what_is_taken_is_done_or_refused_in_one_line(
    text: str, module: Module, ids: np.ndarray, tmp_path: Path
) -> None:
    """Extreme values: the module changes, or the refusal blames the model (1) or the value (2), or it is told that
    nothing changed."""
    told: list[str] = []
    new = module.clone()
    ctx = Context(calibration=Sample(ids, length=32), cache_dir=tmp_path, is_plan="heal" in text)
    ctx.tell = told.append
    try:
        PassManager(build_pipeline(text), ctx).run(new)
    except (InputError, UsageError) as error:
        assert "\n" not in str(error)
        return
    except IrlabError as error:
        pytest.fail(f"{type(error).__name__}: {error}")
    if any(step.exactness == "lossy" for step in build_pipeline(text)):
        assert str(new) != str(module) or any("changed nothing" in line for line in told)


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("quantize{group=-5}", 2, "takes an integer of at least -1 or none, not '-5'"),
        ("quantize{group=100}", 1, "100"),
        ("sparsify{sparsity=1.5}", 2, "takes a number of at least 0 and below 1, not '1.5'"),
        ("sparsify{sparsity=0}", 2, "leaves everything as it is"),
        ("sparsify{pattern=2:4 sparsity=0.3}", 2, "a sparsity of 0.5"),
        ("quantize,correct{rank=100000}", 1, "no matrix has a rank of 100000 (the largest possible is 64)"),
        ("quantize,correct{rank=0}", 2, "leaves everything as it is"),
        ("hash-weights{compression=1000000}", 2, "from 2 to 999999"),
        ("hash-weights{compression=99999}", 1, "no tables"),
        ("low-rank{rank=0}", 2, "leaves everything as it is"),
        ("low-rank{rank=5000}", 1, "no matrix has a rank of 5000"),
        ("prune-heads{ratio=0}", 2, "leaves everything as it is"),
        ("prune-neurons{ratio=0.5 multiple=100000}", 1, "none"),
        ("drop-layers{count=0}", 2, "at least 1"),
        ("drop-layers{indices=-1}", 2, "a comma list of integers of at least 0"),
        ("sparsify{method=magnitude},heal{lora=true rank=4096}", 1, "save nothing"),
        ("smooth-quant{alpha=2}", 2, "a number from 0 to 1 or search"),
        ("repeat{n=0}(cse)", 2, "at least 1"),
    ],
)
def test_whose_fault_a_value_is(
    text: str, status: int, message: str, module: Module, ids: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(IrlabError) as error:
        irlab.run(module, text, calibration=ids, calibration_length=32, cache_dir=tmp_path)
    assert error.value.exit_status == status and message in str(error.value)


def test_what_is_idle_for_all_layers_is_there_for_some(module: Module) -> None:
    text = 'sparsify{sparsity=0 method=magnitude}@"model.layers.1.*"{sparsity=0.5}'
    new = irlab.run(module, text)
    zeros = [
        (np.asarray(new.weights[f"model.layers.{i}.mlp.up_proj.weight"].recipe.read()) == 0).mean() for i in (0, 1)
    ]
    assert zeros[0] < 0.01 and abs(zeros[1] - 0.5) < 0.01
