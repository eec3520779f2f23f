"""`--dump-each`: a numbered dump of the input and after every pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from layered_models import layered

import irlab
from irlab.errors import InputError
from irlab.viz.each import DumpEach


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_each_pass_is_dumped_in_order(tmp_path: Path) -> None:
    each = DumpEach(tmp_path / "new", "dot")
    irlab.run(layered([0, 0]), "canonicalize,decompose,repeat{n=2}(cse)", instruments=[each])
    found = names(tmp_path / "new")
    assert found[:4] == ["00-input.dot", "01-canonicalize.dot", "02-decompose.dot", "03-cse.dot"]
    assert found[-1].endswith("-repeat.dot")
    assert "nn.gated_mlp" in (tmp_path / "new/01-canonicalize.dot").read_text()
    assert "nn.gated_mlp" not in (tmp_path / "new/02-decompose.dot").read_text()


def test_the_input_is_dumped_although_there_are_no_passes(tmp_path: Path) -> None:
    irlab.run(layered([0]), "", instruments=[DumpEach(tmp_path, "json")])
    assert "00-input.json" in names(tmp_path)


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="drawn as"):
        DumpEach(tmp_path, "png")
    (tmp_path / "mine").touch()
    with pytest.raises(InputError, match="is not empty"):
        DumpEach(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        DumpEach(tmp_path / "mine")
    DumpEach(tmp_path, force=True)
