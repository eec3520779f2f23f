"""The runner of RUN/CHECK files: what it runs, what it notices, what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from irlab.testing.filecheck import FileCheckError, run_file, run_lines

FOLDER = Path(__file__).parents[1] / "filecheck"

MODULE = 'irlab 1\nmodule "m"\ngraph(%x: f32[2]) {\n  %0 = prim.add(%x, %x) : f32[2]\n  return y=%0\n}\n'


def file_with(folder: Path, *lines: str) -> Path:
    file = folder / "a test.ir"
    file.write_text("\n".join([*lines, MODULE]))
    return file


def test_every_file_has_run_lines() -> None:
    assert [file.name for file in FOLDER.rglob("*.ir") if not run_lines(file)] == []


def test_a_check_that_holds_and_one_that_does_not(tmp_path: Path) -> None:
    run_file(file_with(tmp_path, "// RUN: irlab-opt %s | filecheck %s", "// CHECK: prim.add(%x, %x)"))
    wrong = file_with(tmp_path, "// RUN: irlab-opt %s | filecheck %s", "// CHECK: prim.sub")
    with pytest.raises(FileCheckError, match=r"(?s)exit status 1, it should succeed.*prim\.sub.*its input.*prim\.add"):
        run_file(wrong)


def test_not_wants_a_failure(tmp_path: Path) -> None:
    run_file(file_with(tmp_path, "# RUN: not irlab-opt %s -p nonsense 2>&1 | filecheck %s", "# CHECK: unknown pass"))
    with pytest.raises(FileCheckError, match="exit status 0, a failure was wanted"):
        run_file(file_with(tmp_path, "# RUN: not irlab-opt %s"))


def test_lines_go_on_and_share_a_fresh_path(tmp_path: Path) -> None:
    run_file(
        file_with(
            tmp_path,
            "// RUN: irlab-opt %s -p cse \\",
            "// RUN:   -o %t.ir",
            "// RUN: irlab-opt %t.ir | filecheck %s",
            "// RUN: irlab-opt '%S/a test.ir' | filecheck %s",
            "// CHECK: prim.add",
        )
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [("rm -rf %t", "unknown command 'rm'"), ("irlab-opt %s | | filecheck %s", "a command is missing")],
)
def test_bad_run_lines(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(FileCheckError, match=message):
        run_file(file_with(tmp_path, f"// RUN: {line}"))


def test_pytest_collects_ir_files_and_shows_what_was_printed(tmp_path: Path) -> None:
    file_with(tmp_path, "// RUN: irlab-opt %s | filecheck %s", "// CHECK: prim.sub")
    (tmp_path / "data.ir").write_text(MODULE)  # no RUN line: no test
    command = [sys.executable, "-m", "pytest", "-p", "irlab.testing.filecheck", "-p", "no:cacheprovider", "-q", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "prim.sub" in done.stdout and "Traceback" not in done.stdout


def test_what_a_file_prints() -> None:
    command = [sys.executable, "-m", "irlab.testing.filecheck", str(FOLDER / "cse.ir")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "irlab 1" in done.stdout


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("hypothesis", "import irlab.testing.strategies"),
        ("filecheck", "from irlab.testing.filecheck import run_file; run_file(Path(sys.argv[1]))"),
    ],
)
def test_what_is_missing_is_said(package: str, code: str, tmp_path: Path) -> None:
    file = file_with(tmp_path, "// RUN: irlab-opt %s | filecheck %s", "// CHECK: prim.add")
    blocked = f"import sys; from pathlib import Path; sys.modules[{package!r}] = None; {code}"
    done = subprocess.run([sys.executable, "-c", blocked, str(file)], capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert package in last and "pip install 'irlab[test]'" in last
