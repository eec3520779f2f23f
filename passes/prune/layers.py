"""Which layers can go?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from irlab.errors import InputError, UsageError
from irlab.ir import Module
from irlab.options import Bounds
from irlab.passes.prune.streams import drop, streams
from irlab.passes.quantize.gptq import Damping
from irlab.passes.quantize.selection import before_encoding, select_matrices
from irlab.passmgr import Context, Pass
from irlab.weight_uses import replace_weights
from irlab.weights import pending


@dataclass(frozen=True)
class DropLayers(
    Pass,
    name="drop-layers",
    exactness="lossy",
    saves_work=True,
    requires={"fuse": "it looks at what matrices of nn ops read"},
    before={
        "kv-cache": "the cache would keep the layers that go",
        "fuse-residual-norm": "layers would hand on two values",
        **before_encoding("codes were chosen for the layers that go"),
        "sparsify": "the refit fills what was zero",
    },
):
    """Leaves out whole layers, and lets the matrix before each gap make up for them.

    What reads the residual stream after a layer reads it before it. Weights and places keep their names, whose numbers
    say which layers are left.

    `count`: how many go, chosen on calibration data; or `indices`: which. `choose`: loss leaves out one after the
    other, each time the one without which the loss is least (one of the half with the least influence); influence looks
    at 1 - cos of the stream before and after each layer alone (Men et al. 2024, ShortGPT), as is done for models that
    predict no tokens. `refit`: where there is calibration data, the last matrix that writes to the stream before a gap
    is fitted by least squares to where the stream was after it (as Shopkhoev et al. 2025, ReplaceMe); `damping` is
    added to the diagonal of its Hessian, relative to its mean.
    """

    count: Annotated[int, Bounds(1)] | None = None
    indices: tuple[Annotated[int, Bounds(0)], ...] = ()
    choose: Literal["loss", "influence"] = "loss"
    refit: bool = True
    damping: Damping = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.count is None) == (not self.indices):
            raise UsageError(f"{self.name} needs to know which layers go", "give count= or indices=, one of them")
        if len(set(self.indices)) < len(self.indices):
            raise UsageError(f"{self.name}: indices= names a layer twice")

    def explain(self, module: Module) -> str:
        found = streams(module.graph)
        width = found[0].made.type.shape[-1]
        return f"{len(found)} layers, {found[0].name} to {found[-1].name}, on a stream of {width} features"

    def computes(self, ctx: Context) -> bool:
        return self.refit and ctx.calibration is not None

    def run(self, module: Module, ctx: Context) -> None:
        found = streams(module.graph)
        numbers = [stream.number for stream in found]
        wanted = len(self.indices) or self.count or 0
        missing = [i for i in self.indices if i not in numbers]
        if missing:
            raise InputError(
                f"{self.name}: there is no layer {missing[0]}", f"layers are {numbers[0]} to {numbers[-1]}"
            )
        if wanted >= len(found):
            raise InputError(f"{self.name}: {wanted} of {len(found)} layers would leave none")
        if not wanted:
            return
        if ctx.is_plan or (ctx.calibration is None and self.indices):
            # For a plan any layers do: the last ones.
            gone = set(self.indices or numbers[-wanted:])
            drop(module.graph, [stream for stream in found if stream.number in gone])
            if self.computes(ctx):  # which of them are fitted shows when the layers are chosen
                replace_weights(module.graph, pending(select_matrices(module.graph)))
        else:
            batches = ctx.calibration_batches(module)
            gone = set(self.indices or self._choose(module, wanted, ctx))
            if self.refit:
                from irlab.passes.prune.bridging import bridge

                ctx.note_weights_computed(bridge(module.graph, sorted(gone), batches, self.damping, ctx))
            else:
                drop(module.graph, [stream for stream in found if stream.number in gone])
        ctx.note_rewrites({f"drop-{stream.name}": 1 for stream in found if stream.number in gone})

    def _choose(self, module: Module, count: int, ctx: Context) -> list[int]:
        from irlab.passes.prune.layer_choice import least_influence, least_loss

        batches = ctx.calibration_batches(module)
        predicts = "logits" in module.graph.outputs and all("input_ids" in batch for batch in batches)
        choose = least_loss if self.choose == "loss" and predicts else least_influence
        return choose(module.graph, batches, count, ctx)
