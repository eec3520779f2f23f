"""`irlab-opt`: lift a model, run passes over it, look at it, write it for a runtime."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import InputError, IrlabError, UsageError

if TYPE_CHECKING:
    from .api import Emitted
    from .ir import Module
    from .passmgr import Context, Instrument, PassManager, PassRecord
    from .target import Backend

EXAMPLES = """\
examples:
  irlab-opt demo -p "fuse,quantize{scheme=int4 group=32},kv-cache" --emit gguf -o demo.gguf --emit onnx -o demo-onnx
  irlab-opt models/llama -p fuse                              print the IR after fusion
  irlab-opt models/llama -p fuse --emit "gguf{type=q4_k_m}" -o llama.gguf
  irlab-opt model.ir -p canonicalize,cse --print-ir-after-change
  irlab-opt demo -p fuse --why-not fuse-attention             why a rule did not fire
  irlab-opt --help-pass quantize                              the options of a pass
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


def build_parser() -> argparse.ArgumentParser:
    """The command line. Option names follow mlir-opt where it has them."""
    parser = argparse.ArgumentParser(
        prog="irlab-opt",
        description="A compiler for LLM efficiency: one graph IR, to GGUF, ONNX and Hugging Face.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "input",
        nargs="?",
        metavar="INPUT",
        help="HF directory or hub id, .ir, .irlab, python:pkg.mod:name, demo, or - for IR on stdin",
    )
    parser.add_argument(
        "-p", "--passes", default="", metavar="PIPELINE", help='passes to run: "fuse,quantize{scheme=int4}"'
    )
    parser.add_argument(
        "--emit",
        action=_Emit,
        dest="outputs",
        metavar="TARGET",
        help='ir (default), gguf, onnx, hf; with options: "gguf{type=q8_0}"; may be repeated',
    )
    parser.add_argument("-o", "--output", action=_OutputPath, metavar="OUT", help="where the --emit before it goes")
    parser.add_argument("--load", action="append", default=[], metavar="FILE.py", help="load passes from a Python file")
    parser.add_argument("--force", action="store_true", help="replace existing outputs")
    parser.add_argument("--keep-going", action="store_true", help="after a failed --emit, go on with the next")
    parser.add_argument(
        "--plan", action="store_true", help="say how the targets hold the result; compute and write nothing"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was done and measured as JSON")

    look = parser.add_argument_group("looking")
    look.add_argument("--list-passes", action="store_true", help="the passes, a line each")
    look.add_argument("--list-backends", action="store_true", help="the targets, a line each")
    look.add_argument("--help-pass", metavar="NAME", help="what a pass or target does, and its options")
    look.add_argument("--print-ir-before", nargs="?", action="append", const="*", default=[], metavar="PASS")
    look.add_argument("--print-ir-after", nargs="?", action="append", const="*", default=[], metavar="PASS")
    look.add_argument("--print-ir-after-all", action="store_true")
    look.add_argument("--print-ir-after-change", action="store_true")
    look.add_argument("--print-ir-after-failure", action="store_true")
    look.add_argument(
        "--why-not", metavar="RULE[@OP]", help="after the passes: where RULE nearly matched, and why it stopped"
    )
    look.add_argument(
        "--dump-graph", type=Path, metavar="FILE", help="draw the result: .dot, or .svg where graphviz is installed"
    )
    look.add_argument("--stats", action="store_true", help="count ops, parameters and bytes")
    look.add_argument("--timing", action="store_true", help="time per pass and rule")
    look.add_argument("--diff", nargs=2, metavar=("A", "B"), help="compare two models as IR text")

    trust = parser.add_argument_group("checking")
    trust.add_argument(
        "--verify-each",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify the IR after each pass (default)",
    )
    trust.add_argument(
        "--check",
        choices=("off", "rewrites", "passes"),
        default="off",
        help="compare numbers before and after each rewrite or pass",
    )
    trust.add_argument(
        "--parity",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run outputs in their real runtime (default for small models)",
    )

    run = parser.add_argument_group("running")
    run.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the interpreter computes")
    run.add_argument("--revision", metavar="R", help="hub revision")
    run.add_argument("--trust-remote-code", action="store_true", help="let code that comes with the model run")
    run.add_argument("--seed", type=int, default=0, metavar="N")
    run.add_argument("--jobs", type=int, default=2, metavar="N", help="threads for computing weights")
    run.add_argument("-q", "--quiet", action="store_true", help="print only what was asked for")
    run.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    parser.add_argument("--version", action="version", version=f"irlab {__version__}")
    parser.set_defaults(ir_output=None)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (see errors.py and the contract in the README)."""
    args = build_parser().parse_args(argv)
    try:
        return _main(args)
    except IrlabError as error:
        if args.verbose:
            traceback.print_exc()
        print(f"irlab-opt: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("irlab-opt: interrupted; outputs that were not finished were removed", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if args.verbose:
            traceback.print_exc()
        print(f"irlab-opt: error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1


def _main(args: argparse.Namespace) -> int:
    from . import registry

    for file in args.load:
        registry.load_file(file)
    if args.list_passes or args.list_backends:
        from .describe import list_plugins

        print(list_plugins("passes" if args.list_passes else "backends"))
        return 0
    if args.help_pass:
        from .describe import describe_plugin

        print(describe_plugin(args.help_pass))
        return 0
    if args.diff:
        return _diff(*args.diff)
    if args.input is None:
        raise UsageError("no INPUT was given", "try irlab-opt demo, or irlab-opt --help")
    return _compile(args)


def _compile(args: argparse.Namespace) -> int:
    from .api import make_backend
    from .passmgr import PassManager, build_pipeline

    outputs: list[Output] = args.outputs or [Output("ir", args.ir_output)]
    if args.outputs and args.ir_output:
        raise UsageError(f"-o {args.ir_output} belongs to no --emit", "write --emit TARGET -o OUT")
    # Everything that can be refused is refused before the model is touched.
    backends = [make_backend(output.target, {}) for output in outputs]
    for output, backend in zip(outputs, backends):
        if output.path is None and backend.name != "ir":
            raise UsageError(f"--emit {output.target} needs a place to go", "follow it with -o OUT")
    _require_writable(args, outputs, backends)
    passes = build_pipeline(args.passes)
    ctx = _context(args, [b.name for b in backends if b.name != "ir"])
    manager = PassManager(passes, ctx, _instruments(args))
    manager.timing = args.timing
    module = _load(args)
    records = manager.run(module)
    if args.check == "rewrites" and not args.quiet:
        print(f"check rewrites: {ctx.check_rewrite}", file=sys.stderr)
    if args.plan:
        from .describe import print_plan

        return print_plan(module, backends)
    _look(args, module, manager)
    emitted: list[Emitted] = []
    try:
        return _emit_all(args, module, outputs, backends, ctx, emitted)
    finally:
        # What was done before a failure is worth a report too.
        if args.report:
            _write_report(args, records, emitted)


def _require_writable(args: argparse.Namespace, outputs: Sequence[Output], backends: Sequence[Backend]) -> None:
    """Refuse outputs that could not be written, before any work is done for them."""
    from .outputs import require_writable

    paths = [output.path.resolve() for output in outputs if output.path is not None]
    if len(set(paths)) < len(paths):
        raise UsageError("two outputs have the same name")
    for output, backend in zip(outputs, backends):
        if output.path is not None and not args.plan:
            require_writable(output.path, directory=backend.is_directory(output.path), force=args.force)
    for extra in (args.report, args.dump_graph):
        if extra is not None:
            require_writable(extra, directory=False, force=True)


def _load(args: argparse.Namespace) -> Module:
    from .api import load, parse

    if args.input == "-":
        return parse(sys.stdin.read(), Path.cwd(), "<stdin>")
    return load(args.input, revision=args.revision, trust_remote_code=args.trust_remote_code)


def _context(args: argparse.Namespace, targets: Sequence[str]) -> Context:
    from .passmgr import Context

    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("no CUDA device was found", "leave out --device, or install a CUDA build of torch")
    ctx = Context(targets=tuple(targets), seed=args.seed, device=args.device, jobs=max(1, args.jobs))
    if sys.stderr.isatty() and not args.quiet:
        from .progress import RichProgress

        ctx.progress = RichProgress()
    if args.check == "rewrites":
        from .diff import RewriteChecker

        ctx.check_rewrite = RewriteChecker(seed=args.seed)
    return ctx


def _instruments(args: argparse.Namespace) -> list[Instrument]:
    from .instruments import CheckEach, PrintIR, VerifyEach

    found: list[Instrument] = []
    if args.verify_each:
        found.append(VerifyEach())
    if args.check == "passes":
        found.append(CheckEach(args.seed, lambda line: print(line, file=sys.stderr)))
    before = None if "*" in args.print_ir_before else args.print_ir_before
    after = None if "*" in args.print_ir_after or args.print_ir_after_all else args.print_ir_after
    if before != [] or after != [] or args.print_ir_after_change or args.print_ir_after_failure:
        on = {"on_change": args.print_ir_after_change, "on_failure": args.print_ir_after_failure}
        found.append(PrintIR(before, after, **on))
    return found


def _look(args: argparse.Namespace, module: Module, manager: PassManager) -> None:
    from . import describe

    if args.timing:
        print(describe.timing_table(manager.records), file=sys.stderr)
    if args.stats:
        print(describe.stats_table(module), file=sys.stderr)
    if args.why_not:
        print(describe.why_not(module, args.why_not, manager.passes))
    if args.dump_graph:
        from .viz import dump

        dump(module, args.dump_graph)


def _emit_all(
    args: argparse.Namespace,
    module: Module,
    outputs: Sequence[Output],
    backends: Sequence[Backend],
    ctx: Context,
    emitted: list[Emitted],
) -> int:
    """Write every output, adding to `emitted`; the exit status of those that failed under --keep-going."""
    from .api import emit_with

    status = 0
    looked = bool(args.why_not or args.dump_graph or args.stats)
    for output, backend in zip(outputs, backends):
        if output.path is None:
            # Text nobody asked for would bury the answer to --why-not or --stats.
            if args.outputs or not looked:
                sys.stdout.write(str(module))
            continue
        try:
            result = emit_with(backend, module, output.path, parity=args.parity, force=args.force, ctx=ctx)
        except IrlabError as error:
            if not args.keep_going:
                raise
            print(f"irlab-opt: error: {output.target}: {error}", file=sys.stderr)
            status = status or error.exit_status
            continue
        emitted.append(result)
        if not args.quiet:
            print(f"{result.out}: {result.bytes:,} bytes, {result.parity}", file=sys.stderr)
            if result.parity.continuation:
                print(f"  {result.parity.runtime} says: {result.parity.continuation!r}", file=sys.stderr)
            for note in result.notes:
                print(f"  note: {note}", file=sys.stderr)
    return status


def _write_report(args: argparse.Namespace, records: list[PassRecord], emitted: list[Emitted]) -> None:
    import json

    from .outputs import whole_output

    report = {
        "irlab": __version__,
        "input": args.input,
        "pipeline": args.passes,
        "passes": [record.as_dict() for record in records],
        "parity": {str(e.out): e.parity.as_dict() for e in emitted},
        "bytes": {str(e.out): e.bytes for e in emitted},
        "seconds": {str(e.out): e.seconds for e in emitted},
    }
    with whole_output(args.report, directory=False, force=True) as path:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _diff(a: str, b: str) -> int:
    import difflib

    from .api import load

    texts = [str(load(source)).splitlines(keepends=True) for source in (a, b)]
    lines = list(difflib.unified_diff(texts[0], texts[1], a, b))
    sys.stdout.writelines(lines)
    return 0
