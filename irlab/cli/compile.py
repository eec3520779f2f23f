"""How does a request become work? INPUT is lifted, passes run over it, it is looked at, and every output is written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import InputError, IrlabError, UsageError
from ..timing import Clock
from .dump import dump_graph, timeline_for
from .lift import lift
from .measure import Measurements, calibration
from .options import Output
from .recipe import require_model, save_recipe
from .replay import replay_options

if TYPE_CHECKING:
    from ..cost import Sizes
    from ..emission import Emitted
    from ..ir import Module
    from ..passmgr import Context, Instrument, Pass, PassManager, PassRecord
    from ..statistics import Statistics
    from ..target import Backend
    from ..viz.timeline import Timeline


def compile_input(args: argparse.Namespace) -> int:
    """Do what the options ask with INPUT; the exit status."""
    from ..api import make_backend
    from ..model_fingerprint import model_fingerprint
    from ..passmgr import PassManager
    from ..schedule import scheduled_pipeline
    from ..statistics import parse_sizes, statistics

    outputs: list[Output] = args.outputs or [Output("ir", args.ir_output)]
    if args.outputs and args.ir_output:
        raise UsageError(f"-o {args.ir_output} belongs to no --emit", "write --emit TARGET -o OUT")
    # Everything that can be refused is refused before the model is touched.
    backends = [make_backend(output.target, {}) for output in outputs]
    for output, backend in zip(outputs, backends):
        if output.path is None and backend.name != "ir":
            raise UsageError(f"--emit {output.target} needs a place to go", "follow it with -o OUT")
    _require_writable(args, outputs, backends)
    sizes = parse_sizes(args.sizes)
    if args.dump_format and not args.dump_each:
        raise UsageError(
            "--dump-format is the format of --dump-each DIR", "the suffix of --dump-graph FILE says its own"
        )
    scheduled = scheduled_pipeline(args.passes, backends)
    passes = [each.step for each in scheduled]
    _require_in_pipeline({*args.print_ir_before, *args.print_ir_after} - {"*"}, passes)
    ctx = _context(args, [*(make_backend(t, {}) for t in args.target), *(b for b in backends if b.name != "ir")])
    for each in scheduled:
        if each.needed_by in {backend.name for backend in backends}:
            ctx.tell(f"{each.step.name} runs first: {each.needed_by} requires it ({each.reason})")
    measurements = Measurements(args, ctx, passes, [b.name for b in backends])
    timeline = timeline_for(args)
    manager = PassManager(passes, ctx, [*_instruments(args, measurements, ctx), *([timeline] if timeline else [])])
    manager.timing = args.timing or timeline is not None
    with ctx.clock.span("lift"):
        module = lift(args)
        require_model(args, module)
        fingerprint = model_fingerprint(module) if args.save_recipe else ""
    refusal = _rehearse(args, module, passes, outputs, backends, ctx)
    measurements.before_passes(module)
    try:
        records = manager.run(module)
        if refusal is not None:
            raise refusal
    except Exception:
        if args.reproducer and args.reproducer.exists():
            print(f"reproducer: irlab-opt {args.reproducer}", file=sys.stderr)
        # How far the passes came is what somebody who asked for their timeline wants to see now.
        if timeline is not None:
            dump_graph(args, module, timeline, ctx)
        raise
    if args.check == "rewrites" and not args.quiet:
        print(f"check rewrites: {ctx.check_rewrite}", file=sys.stderr)
    if not args.plan:
        measurements.after_passes(module, records)
    _look(args, module, manager, sizes, timeline)
    emitted: list[Emitted] = []
    try:
        if args.plan:
            from ..describe import print_plan

            return print_plan(module, backends)
        status = _emit_all(args, module, outputs, backends, ctx, emitted, measurements)
        if args.save_recipe:
            save_recipe(args, passes, backends, outputs, fingerprint)
        return status
    finally:
        # What was done before a failure is worth a report too.
        if args.report:
            _write_report(args, records, emitted, ctx, statistics(module, sizes), measurements)
        if args.timing:
            from ..timing import timing_table

            print(timing_table(ctx.clock.total()), file=sys.stderr)


def _require_writable(args: argparse.Namespace, outputs: Sequence[Output], backends: Sequence[Backend]) -> None:
    """Refuse outputs that could not be written, before any work is done for them."""
    from ..outputs import require_writable

    paths = [output.path.resolve() for output in outputs if output.path is not None]
    if len(set(paths)) < len(paths):
        raise UsageError("two outputs have the same name")
    for output, backend in zip(outputs, backends):
        if output.path is not None and not args.plan:
            require_writable(output.path, directory=backend.is_directory(output.path), force=args.force)
    if args.dump_graph:
        from ..viz import require_format

        require_format(args.dump_graph)
    for extra in (args.report, args.dump_graph, args.reproducer, args.save_recipe):
        if extra is not None:
            require_writable(extra, directory=False, force=True)


def _rehearse(
    args: argparse.Namespace,
    module: Module,
    passes: Sequence[Pass],
    outputs: Sequence[Output],
    backends: Sequence[Backend],
    ctx: Context,
) -> IrlabError | None:
    """Refuse outputs that cannot hold what the passes will make, before much work is done for them.

    Returns what a pass refuses: run as the plan that `ctx` then is, the passes fail where those see it who print, draw
    or reproduce failures.
    """
    from ..emission import prepare_output
    from ..rehearsal import rehearsed

    written = [(output.path, backend) for output, backend in zip(outputs, backends) if output.path is not None]
    is_work = args.eval or len(written) > 1 or any(s.exactness == "lossy" or s.computes(ctx) for s in passes)
    if args.plan or not is_work:
        return None
    try:
        made = rehearsed(module, passes, ctx)
    except IrlabError as error:
        if args.check != "off":  # a check of numbers that a plan does not compute would fail before
            raise
        ctx.is_plan = True
        return error
    if made is None:
        return None
    refused: list[IrlabError] = []
    for path, backend in written:
        try:
            prepare_output(backend, made, path, force=args.force, ctx=replace(ctx, is_plan=True, clock=Clock()))
        except IrlabError as error:
            refused.append(error)
    if refused and (not args.keep_going or len(refused) == len(written)):
        raise refused[0]
    return None


def _require_in_pipeline(names: Iterable[str], passes: Sequence[Pass]) -> None:
    """Refuse to print IR around passes that do not run."""
    from ..options import did_you_mean
    from ..schedule import flat

    running = {step.name for step in flat(passes)}
    for name in names:
        if name not in running:
            raise UsageError(
                f"the IR cannot be printed around '{name}': the pipeline has no such pass",
                did_you_mean(name, running) if running else "name one with -p",
            )


def _context(args: argparse.Namespace, outputs: Sequence[Backend]) -> Context:
    from ..passmgr import Context

    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("no CUDA device was found", "leave out --device, or install a CUDA build of torch")
    ctx = Context(
        targets=tuple(dict.fromkeys(output.name for output in outputs)),
        outputs=tuple(dict.fromkeys(outputs)),
        seed=args.seed,
        device=args.device,
        jobs=max(1, args.jobs),
        calibration=calibration(args),
        cache_dir=args.cache_dir,
        is_plan=args.plan,
    )
    if sys.stderr.isatty() and not args.quiet:
        from ..progress import RichProgress

        ctx.progress = RichProgress()
    if not args.quiet:
        ctx.tell = lambda text: print(text, file=sys.stderr)
    if args.check == "rewrites":
        from ..diff import RewriteChecker

        ctx.check_rewrite = RewriteChecker(args.seed, args.device)
    return ctx


def _instruments(args: argparse.Namespace, measurements: Measurements, ctx: Context) -> list[Instrument]:
    from ..instruments import CheckEach, PrintIR, VerifyEach

    # The first one is the outermost: it sees what the others raise.
    found: list[Instrument] = []
    if args.reproducer:
        from ..reproducer import Reproducer

        found.append(Reproducer(args.reproducer, replay_options(args), args.load))
    before = None if "*" in args.print_ir_before else args.print_ir_before
    after = None if "*" in args.print_ir_after or args.print_ir_after_all else args.print_ir_after
    if before != [] or after != [] or args.print_ir_after_change or args.print_ir_after_failure:
        on = {"on_change": args.print_ir_after_change, "on_failure": args.print_ir_after_failure}
        found.append(PrintIR(before, after, **on))
    if args.dump_each:
        from ..viz.each import DumpEach

        found.append(DumpEach(args.dump_each, args.dump_format or "", full=args.dump_full, force=args.force))
    if args.check == "passes":
        found.append(CheckEach(args.seed, lambda line: print(line, file=sys.stderr), args.device))
    if measurements.instrument is not None and not args.plan:
        found.append(measurements.instrument)
    if (args.report or args.eval) and not args.plan:
        from ..weight_errors import MeasureWeights

        found.append(MeasureWeights(ctx))
    if args.verify_each:
        found.append(VerifyEach())
    return found


def _look(
    args: argparse.Namespace, module: Module, manager: PassManager, sizes: Sizes, timeline: Timeline | None
) -> None:
    from .. import describe

    if args.stats:
        from ..statistics import statistics

        print(describe.stats_table(statistics(module, sizes), module.name), file=sys.stderr)
    if args.why_not:
        print(describe.why_not(module, args.why_not, manager.passes))
    if args.dump_graph:
        dump_graph(args, module, timeline, manager.ctx)


def _emit_all(
    args: argparse.Namespace,
    module: Module,
    outputs: Sequence[Output],
    backends: Sequence[Backend],
    ctx: Context,
    emitted: list[Emitted],
    measurements: Measurements,
) -> int:
    """Write every output, adding to `emitted`; the exit status of those that failed under --keep-going."""
    from ..emission import emit_together

    written = [(backend, output.path) for output, backend in zip(outputs, backends) if output.path is not None]
    if len(written) < len(outputs) and (
        args.outputs or not (args.why_not or args.dump_graph or args.dump_each or args.stats)
    ):
        # Text nobody asked for would bury the answer to --why-not or --stats.
        sys.stdout.write(str(module))
    status = 0

    def refused(backend: Backend, error: IrlabError) -> None:
        nonlocal status
        print(f"irlab-opt: error: {backend}: {error}", file=sys.stderr)
        status = status or error.exit_status

    done = emit_together(
        module,
        written,
        parity=args.parity,
        force=args.force,
        ctx=ctx,
        refused=refused if args.keep_going else None,
    )
    with closing(done):
        for result in done:
            emitted.append(result)
            if not args.quiet:
                print(f"{result.out}: {result.bytes:,} bytes, {result.parity}", file=sys.stderr)
                if result.parity.continuation:
                    print(f"  {result.parity.runtime} says: {result.parity.continuation!r}", file=sys.stderr)
                for note in result.notes:
                    print(f"  note: {note}", file=sys.stderr)
            backend = next(backend for backend, path in written if path == result.out)
            measurements.after_output(backend, result)
    return status


def _write_report(
    args: argparse.Namespace,
    records: list[PassRecord],
    emitted: list[Emitted],
    ctx: Context,
    found: Statistics,
    measurements: Measurements,
) -> None:
    import json

    from ..outputs import whole_output
    from ..report import page

    report = {
        "irlab": __version__,
        "input": args.input,
        "pipeline": args.passes,
        "passes": [record.as_dict() for record in records],
        "parity": {str(e.out): e.parity.as_dict() for e in emitted},
        "bytes": {str(e.out): e.bytes for e in emitted},
        "seconds": {str(e.out): e.seconds for e in emitted},
        "notes": {str(e.out): list(e.notes) for e in emitted},
        "quality": measurements.found,
        "speed": measurements.speeds,
        "timing": ctx.clock.total().as_dict(),
        "statistics": found.as_dict(),
    }
    with whole_output(args.report, directory=False, force=True) as path:
        text = page(report) if args.report.suffix == ".html" else json.dumps(report, indent=2) + "\n"
        path.write_text(text, encoding="utf-8")
