"""How does a shell complete `irlab-opt`? A script for bash, zsh, fish and others, by shtab; options say what they take.

irlab-opt --print-completion bash > ~/.local/share/bash-completion/completions/irlab-opt
"""

from __future__ import annotations

from typing import Any

from .. import registry
from .options import build_parser


def completion_script(shell: str) -> str:
    """The script for `shell`, with the plug-ins that are installed now."""
    import shtab

    parser = build_parser()
    takes = _completers(shtab)
    for action in parser._actions:
        if action.dest in takes:
            action.complete = takes[action.dest]  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script


def _completers(shtab: Any) -> dict[str, Any]:
    """What completes the value of each option, by its name in the parsed arguments."""
    passes, backends = registry.names("passes"), registry.names("backends")
    python, ir, recipe = shtab.glob("*.py"), shtab.glob("*.ir", "*.irlab"), shtab.glob("*.toml")
    model = _words("input", ["demo"], files=True)
    return {
        "input": model,
        "passes": _list("passes", passes),
        "explain": _list("passes", passes),
        "print_ir_before": _words("pass", passes),
        "print_ir_after": _words("pass", passes),
        "help_pass": _words("plugin", [*passes, *backends]),
        "outputs": _words("target", backends),
        "target": _words("target", backends),
        "load": python,
        "recipe": recipe,
        "save_recipe": recipe,
        "reproducer": ir,
        "diff": model,
        **dict.fromkeys(("output", "report", "dump_graph", "calibration", "eval"), shtab.FILE),
        **dict.fromkeys(("dump_each", "directory", "cache_dir"), shtab.DIRECTORY),
    }


def _words(name: str, words: list[str], *, files: bool = False) -> dict[str, Any]:
    """Completes one of `words`, or a file too."""
    text = " ".join(words)
    more = '; compgen -f -- "$1"' if files else ""
    return {
        "bash": f"_irlab_{name}",
        "zsh": f"{{compadd {text}{'; _files' if files else ''}}}",
        "fish": f"{text} (__fish_complete_path (commandline -ct))" if files else text,
        "tcsh": f"({text})",
        "powershell": "",
        "preamble": {"bash": f'_irlab_{name}() {{ compgen -W "{text}" -- "$1"{more}; }}'},
    }


def _list(name: str, words: list[str]) -> dict[str, Any]:
    """Completes the last of `words` in a list with commas."""
    text = " ".join(words)
    bash = f"""\
_irlab_{name}() {{
  local before=""
  case "$1" in *[,\\(]*) before="${{1%"${{1##*[,(]}}"}}";; esac
  compgen -P "$before" -W "{text}" -- "${{1##*[,(]}}"
}}"""
    return {
        "bash": f"_irlab_{name}",
        "zsh": f"_values -s , pass {text}",
        "fish": f"(__fish_complete_list , 'printf \"%s\\\\n\" {text}')",
        "tcsh": f"({text})",
        "powershell": "",
        "preamble": {"bash": bash},
    }
