"""Which options does `irlab-opt` have? The parser; names follow mlir-opt where it has them."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__

USAGE = "irlab-opt [INPUT] [-p PIPELINE | --recipe FILE.toml] [--emit TARGET -o OUT]... [option]..."

EXAMPLES = """\
examples:
  compile    irlab-opt demo -p "fuse,quantize{scheme=int4 group=32},kv-cache" --emit gguf -o a.gguf --emit onnx -o b
             irlab-opt models/llama -p fuse --emit "gguf{type=q4_k_m}" -o llama.gguf
             irlab-opt models/llama -p "fuse,kv-cache" --plan --emit gguf -o x.gguf        can the target hold it?
  per layer  irlab-opt demo -p 'fuse,quantize{scheme=int4}@"model.layers.{0..1}.*"{scheme=int8}'
  repeat     irlab-opt demo -p fuse,quantize --emit gguf -o a.gguf --save-recipe run.toml; irlab-opt --recipe run.toml
  look       irlab-opt models/llama -p fuse                                                the IR after fusion
             irlab-opt model.ir -p canonicalize,cse --print-ir-after-change --timing
             irlab-opt demo -p fuse --dump-graph demo.svg --stats
  ask        irlab-opt --list-passes; irlab-opt --help-pass quantize
             irlab-opt --explain quantize,kv-cache                                         what would run, and why
             irlab-opt demo -p fuse --why-not fuse-bias@layers.0                           why a rule does not fire
  trust      irlab-opt demo -p fuse --check=rewrites                                       numbers at each rewrite
  debug      irlab-opt demo --load my_pass.py -p fuse,my-pass --reproducer bug.ir; irlab-opt bug.ir
             irlab-opt --reduce 'irlab-opt {}' --reduce-match "no luck" bug.ir -o small.ir
  complete   irlab-opt --print-completion bash > ~/.local/share/bash-completion/completions/irlab-opt
Quote what has braces and commas, or the shell expands it.
exit status: 0 done, 1 the input or request is at fault, 2 usage, 3 a verification or check failed
"""


@dataclass
class Output:
    """One --emit with the -o that follows it."""

    target: str
    path: Path | None = None


class _Emit(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.outputs = [*(namespace.outputs or []), Output(values)]


class _OutputPath(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        outputs = list(namespace.outputs or [])
        if outputs and outputs[-1].path is None:
            outputs[-1] = Output(outputs[-1].target, Path(values))
        elif namespace.ir_output is None:
            namespace.ir_output = Path(values)
        else:
            parser.error(f"-o {values}: each -o follows the --emit it belongs to")
        namespace.outputs = outputs


def _count(text: str) -> int:
    """A number of things, one at least."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


_count.__name__ = "int"  # argparse says "invalid int value"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with what may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self._hint(message) or 'irlab-opt --help shows the options'})\n")

    def _hint(self, message: str) -> str:
        from difflib import get_close_matches

        known = [name for action in self._actions for name in action.option_strings]
        if unknown := re.match(r"unrecognized arguments: (?:.*? )?(--?[\w-]+)", message):
            word = unknown[1]
        elif choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            word, known = choice[1], re.findall(r"[\w-]+", choice[2])
        else:
            return ""
        near = get_close_matches(word, known, 1, 0.5)
        return f"did you mean {near[0]}?" if near else ""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `irlab-opt`."""
    parser = _Parser(
        prog="irlab-opt",
        usage=USAGE,
        allow_abbrev=False,
        description="A compiler for LLM efficiency: one graph IR, to GGUF, ONNX, TensorRT and Hugging Face.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_compiling(parser)
    _add_recipes(parser.add_argument_group("recipes"))
    _add_looking(parser.add_argument_group("looking"))
    _add_checking(parser.add_argument_group("checking"))
    _add_debugging(parser.add_argument_group("when something fails"))
    _add_data(parser.add_argument_group("data"))
    _add_running(parser.add_argument_group("running"))
    _add_extending(parser.add_argument_group("extending"))
    parser.add_argument("--version", action="version", version=f"irlab {__version__}")
    parser.set_defaults(ir_output=None, is_replay=False, fingerprint="")
    return parser


def _add_compiling(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "input",
        nargs="?",
        metavar="INPUT",
        help="HF directory or hub id, .gguf, .ir, .irlab, python:pkg.mod:name, demo, or - for IR on stdin",
    )
    group.add_argument(
        "-p", "--passes", default="", metavar="PIPELINE", help='passes to run: "fuse,quantize{scheme=int4}"'
    )
    group.add_argument(
        "--emit",
        action=_Emit,
        dest="outputs",
        metavar="TARGET",
        help='ir (default), gguf, onnx, tensorrt, hf; with options: "gguf{type=q8_0}"; may be repeated',
    )
    group.add_argument(
        "--target", action="append", default=[], metavar="NAME", help="let passes fit a target without writing for it"
    )
    group.add_argument("-o", "--output", action=_OutputPath, metavar="OUT", help="where the --emit before it goes")
    group.add_argument("--force", action="store_true", help="replace existing outputs")
    group.add_argument("--keep-going", action="store_true", help="after a failed --emit, go on with the next")
    group.add_argument(
        "--plan", action="store_true", help="say how the targets hold the result; compute and write nothing"
    )
    group.add_argument(
        "--report", type=Path, metavar="FILE", help="write what was done and measured as JSON, or as a page (.html)"
    )


def _add_recipes(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE.toml",
        help="pipeline, options per layer, seed, data and outputs from a file",
    )
    group.add_argument(
        "--save-recipe", type=Path, metavar="FILE.toml", help="write what was run, to be run again with --recipe"
    )


def _add_looking(group: argparse._ActionsContainer) -> None:
    group.add_argument("--list-passes", action="store_true", help="the passes, a line each")
    group.add_argument("--list-backends", action="store_true", help="the targets, a line each")
    group.add_argument("--help-pass", metavar="NAME", help="what a pass or target does, and its options")
    group.add_argument(
        "--explain", metavar="PIPELINE", help="what would run, in order, with which options, and why; INPUT is optional"
    )
    for when in ("before", "after"):
        group.add_argument(
            f"--print-ir-{when}",
            nargs="?",
            action="append",
            const="*",
            default=[],
            metavar="PASS",
            help=f"print the IR {when} this pass, or every pass",
        )
    group.add_argument("--print-ir-after-all", action="store_true", help="print the IR after every pass")
    group.add_argument("--print-ir-after-change", action="store_true", help="... after each that changed it")
    group.add_argument("--print-ir-after-failure", action="store_true", help="print the IR that a pass failed on")
    group.add_argument(
        "--why-not",
        metavar="RULE[@OP]",
        help="after the passes: where RULE nearly matched and why it stopped; OP: part of a location, or %%12",
    )
    group.add_argument(
        "--dump-graph",
        type=Path,
        metavar="FILE",
        help="draw the result: .html (what each pass did), .svg (with graphviz), .dot, .json for Model Explorer, "
        ".onnx for Netron",
    )
    group.add_argument(
        "--dump-weights",
        choices=("off", "sample", "full"),
        default="sample",
        help="how much of each weight an .html dump reads for its statistics",
    )
    group.add_argument("--dump-full", action="store_true", help="draw every layer, not one of several equal ones")
    group.add_argument(
        "--dump-each", type=Path, metavar="DIR", help="draw the input and the result of each pass in DIR"
    )
    group.add_argument(
        "--dump-format", metavar="SUFFIX", help="the suffix of what --dump-each writes: svg, dot, json, onnx ..."
    )
    group.add_argument("--stats", action="store_true", help="count ops, parameters, bytes, work and memory")
    group.add_argument("--sizes", default="", metavar="SIZES", help='for --stats: "batch=1 seq=512 past=0" (default)')
    group.add_argument(
        "--timing", action="store_true", help="time of lifting, passes, rules, writing and parity, as a tree"
    )
    group.add_argument("--diff", nargs=2, metavar=("A", "B"), help="compare two models as IR text")


def _add_checking(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--verify-each",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify the IR after each pass (default)",
    )
    group.add_argument(
        "--check",
        choices=("off", "rewrites", "passes"),
        default="off",
        help="compare numbers before and after each rewrite or pass",
    )
    group.add_argument(
        "--parity",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run outputs in their real runtime (default for small models)",
    )


def _add_debugging(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--reproducer",
        type=Path,
        metavar="FILE.ir",
        help="if a pass or check fails, write what replays it, to run alone",
    )
    group.add_argument(
        "--reduce",
        metavar="COMMAND",
        help="make INPUT smaller while COMMAND, with {} for its file, fails in the same way",
    )
    group.add_argument("--reduce-match", default="", metavar="TEXT", help="what COMMAND prints when it fails this way")
    group.add_argument(
        "--reduce-timeout", type=float, default=60.0, metavar="SECONDS", help="longest time of one COMMAND (default 60)"
    )


def _add_data(group: argparse._ActionsContainer) -> None:
    ids = "UTF-8 text, or token ids as .npy or .json"
    group.add_argument(
        "--calibration", metavar="FILE|self", help=f"what passes learn from: {ids}; self: what the model writes itself"
    )
    group.add_argument("--calibration-tokens", type=_count, default=32768, metavar="N", help="at most so many (32768)")
    group.add_argument("--calibration-length", type=_count, default=512, metavar="N", help="tokens to a piece (512)")
    group.add_argument("--eval", metavar="FILE", help=f"measure before and after lossy passes on this: {ids}")
    group.add_argument("--eval-tokens", type=_count, default=16384, metavar="N", help="at most so many (16384)")
    group.add_argument(
        "--eval-in", action="append", default=[], metavar="TARGET", help="measure what was written, in its own runtime"
    )
    group.add_argument(
        "--measure-speed",
        action="store_true",
        help="measure tokens/s of what was written, in its own runtime, with and without the passes that save work",
    )
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where long computations are kept (or set IRLAB_CACHE), up to IRLAB_CACHE_SIZE (64GB)",
    )


def _add_running(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the interpreter computes (default cpu)"
    )
    group.add_argument("--revision", metavar="R", help="hub revision")
    group.add_argument("--trust-remote-code", action="store_true", help="let code that comes with the model run")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default 0)")
    group.add_argument("--jobs", type=_count, default=2, metavar="N", help="threads for computing weights")
    group.add_argument("-q", "--quiet", action="store_true", help="print only what was asked for")
    group.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")


def _add_extending(group: argparse._ActionsContainer) -> None:
    group.add_argument("--load", action="append", default=[], metavar="FILE.py", help="load passes from a Python file")
    group.add_argument("--new-plugin", metavar="NAME", help="write a small package with a pass of yours, and its tests")
    group.add_argument(
        "--directory", type=Path, default=Path("."), metavar="DIR", help="where --new-plugin makes the folder NAME"
    )
    group.add_argument(
        "--print-completion",
        metavar="SHELL",
        choices=("bash", "zsh", "fish", "tcsh", "powershell"),
        help="print what makes bash, zsh, fish ... complete this command",
    )
