"""What irlab-opt's own options teach: suggestions, help by example, completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SMALL, fails, irlab_opt


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo", "--timming"], "did you mean --timing?"),
        (["demo", "--why-nto", "x"], "did you mean --why-not?"),
        (["demo", "--pases=cse"], "did you mean --passes?"),
        (["demo", "--tim"], "unrecognized arguments: --tim"),
        (["demo", "--xyzzy"], "irlab-opt --help shows the options"),
        (["demo", "--check=rewrite"], "did you mean rewrites?"),
        (["demo", "--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_unknown_options_are_one_line_with_a_suggestion(args: list[str], message: str) -> None:
    assert message in fails(2, *args)
    assert len(irlab_opt(*args).stderr.splitlines()) == 1


def test_help_is_grouped_and_teaches_by_example() -> None:
    shown = irlab_opt("--help").stdout
    for group in ("recipes:", "looking:", "checking:", "when something fails:", "running:", "extending:"):
        assert f"\n{group}\n" in shown
    for word in ("--explain quantize,kv-cache", "--reproducer bug.ir", "--save-recipe run.toml", "exit status: 0 done"):
        assert word in shown


EXAMPLES = [
    (["--explain", "quantize,kv-cache"], "kv-cache requires it"),
    (["demo", "-p", "canonicalize", "--why-not", "fuse-attention@layers.0"], "fuse-attention"),
]


@pytest.mark.parametrize(("args", "shown"), EXAMPLES)
def test_the_examples_of_the_help_run(args: list[str], shown: str) -> None:
    result = irlab_opt(*args)
    assert result.returncode == 0, result.stderr
    assert shown in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh", "powershell"])
def test_a_script_for_each_shell_names_passes_and_targets(shell: str) -> None:
    script = irlab_opt("--print-completion", shell).stdout
    for word in ("irlab-opt", "why-not", "quantize", "kv-cache", "gguf", "rewrites"):
        assert word in script or shell == "powershell"
    assert "irlab-opt" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["-p", "ca"], "canonicalize cast"),
        (["-p", "fuse,dynamic"], "fuse,dynamic-sparsity"),
        (["-p", "repeat(canon"], "repeat(canonicalize"),
        (["--emit", "gg"], "gguf"),
        (["--check", "re"], "rewrites"),
        (["--tim"], "--timing"),
        (["--recipe", "ru"], "run.toml"),
        (["de"], "demo"),
    ],
)
def test_bash_completes(typed: list[str], offered: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    (tmp_path / "run.txt").touch()
    (tmp_path / "irlab.bash").write_text(irlab_opt("--print-completion", "bash").stdout)
    script = """
source irlab.bash
function=$(complete -p irlab-opt | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(irlab-opt "$@"); COMP_CWORD=$#; COMPREPLY=()
$function irlab-opt "${COMP_WORDS[COMP_CWORD]}" ""
echo "${COMPREPLY[*]}"
"""
    command = ["bash", "-c", script, "bash", *typed]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert shown.stdout.strip() == offered, shown.stderr


def test_listing_passes_imports_no_torch() -> None:
    code = "import sys; from irlab.cli import main; main(['--list-passes']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert shown.stdout.splitlines()[-1] == "False", shown.stderr


def test_passes_over_text_import_no_torch() -> None:
    """Tools such as --reduce start irlab-opt a hundred times."""
    code = "import sys; from irlab.cli import main; main(['-', '-q', '-p', 'cse']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], input=SMALL, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"
