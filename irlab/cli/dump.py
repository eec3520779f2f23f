"""What does `--dump-graph` need, before the passes and after them?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir import Module
    from ..passmgr import Context
    from ..viz.timeline import Timeline


def timeline_for(args: argparse.Namespace) -> Timeline | None:
    """What watches the passes, for a dump that shows what each of them did."""
    if args.dump_graph is None or args.dump_graph.suffix != ".html":
        return None
    from ..viz.timeline import Timeline

    return Timeline()


def dump_graph(args: argparse.Namespace, module: Module, timeline: Timeline | None, ctx: Context) -> None:
    """Write the dump that was asked for."""
    from ..viz import dump
    from ..viz.figures import layer_figures

    dump(
        module,
        args.dump_graph,
        full=args.dump_full,
        figures=layer_figures(ctx.manager.records),
        timeline=timeline,
        weights=args.dump_weights,
        progress=ctx.progress,
    )
