"""irlab-opt --new-plugin writes a package that installs, is found, passes its own tests and type checks."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import irlab
from irlab.errors import InputError, UsageError
from irlab.scaffold import new_plugin

NAME = "my-passes"


def run(*command: object, cwd: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON"))}
    environment["MYPYPATH"] = str(Path(irlab.__file__).parents[1])  # mypy does not see an editable installation
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_plugin(NAME, tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def python(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the plug-in; it sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}, scheme="venv"))
    shown = [p for p in {sysconfig.get_path("purelib"), *site.getsitepackages(), *sys.path} if p.endswith("-packages")]
    (purelib / "shared.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in shown))
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-build-isolation", "--no-index", plugin)
    return scripts / "python"


def test_it_is_found_described_and_run(python: Path, tmp_path: Path) -> None:
    listed = run(python, "-m", "irlab", "--list-passes", cwd=tmp_path)
    assert "my-passes            Multiplies by the reciprocal" in listed
    assert "powers-of-two" in run(python, "-m", "irlab", "--help-pass", NAME, cwd=tmp_path)
    shown = run(python, "-m", "irlab", "demo", "-p", "my-passes{powers-of-two=true},fuse", "--timing", cwd=tmp_path)
    assert "nn.rms_norm" in shown and NAME in shown


def test_its_own_tests_pass(python: Path, plugin: Path) -> None:
    shown = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", plugin, cwd=plugin)
    assert "3 passed" in shown


def test_it_is_clean(plugin: Path) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=plugin)
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".", cwd=plugin)


@pytest.mark.slow
def test_mypy_is_content(plugin: Path) -> None:
    run(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", plugin / "my_passes", cwd=plugin)


def test_the_command_names_the_files(tmp_path: Path) -> None:
    shown = run(sys.executable, "-m", "irlab", "--new-plugin", NAME, "--directory", tmp_path)
    files = {str(file) for file in (tmp_path / NAME).rglob("*") if file.is_file()}
    assert files and files <= set(shown.splitlines())
    assert f"next: pip install -e {tmp_path / NAME}" in shown


@pytest.mark.parametrize(
    "name", ["", "My-passes", "1st", "a--b", "a_b", "a/b", "..", "class", "json", "irlab", "torch", "fuse"]
)
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        new_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(InputError, match="my-passes exists"):
        new_plugin(NAME, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        new_plugin(NAME, tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == [tmp_path / NAME]
