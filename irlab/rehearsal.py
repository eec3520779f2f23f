"""Could the outputs hold what a pipeline will make? Seen before any work, by running it as a plan: types and shapes
tell, and no number is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .errors import PlanError
from .ir import Module
from .passmgr import Context, Instrument, Pass, PassManager, PassRecord, Progress
from .schedule import flat
from .sweep import LayerPass, require_calibration
from .timing import Clock
from .weight_uses import replace_weights
from .weights import WeightSymbol, pending


def rehearsed(module: Module, passes: Sequence[Pass], ctx: Context) -> Module | None:
    """What `passes` will make of `module`, in all but the numbers that they compute; None where only doing it shows.

    Raises what a pass refuses.
    """
    require_calibration([step for step in flat(passes) if isinstance(step, LayerPass) and step.computes(ctx)], ctx)
    made = module.clone()
    plan = replace(
        ctx,
        is_plan=True,
        progress=Progress(),
        clock=Clock(),
        check_rewrite=None,
        size_limits={},
        tell=lambda text: None,
    )
    try:
        PassManager(passes, plan, [_Computed(plan)]).run(made)
    except PlanError:
        return None
    return made


class _Computed(Instrument):
    """Marks the weights that passes will compute: a plan gives them types only."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._before: list[dict[str, WeightSymbol]] = []

    def before_pass(self, step: Pass, module: Module) -> None:
        self._before.append(module.weights)

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        self._before.pop()

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        before = self._before.pop()
        if step.computes(self._ctx):
            changed = {n: s for n, s in module.weights.items() if n not in before or before[n].recipe != s.recipe}
            replace_weights(module.graph, pending(changed))
