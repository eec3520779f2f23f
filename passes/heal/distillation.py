"""How does a student learn from its teacher? Both run on the same batches; what they say differently is the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import torch

from irlab.activations import Activations
from irlab.cache import Shelf
from irlab.calibration import Batch
from irlab.errors import InputError
from irlab.ir import Module
from irlab.passes.cast import Cast, working_dtype
from irlab.passes.heal.heal import HEALED, size
from irlab.passes.heal.losses import Objective, matching
from irlab.passes.heal.parameters import Parameters
from irlab.passes.heal.stack import Stack
from irlab.passes.heal.training import Schedule, Training
from irlab.passmgr import Context
from irlab.types import f32
from irlab.weights import Array, WeightSymbol, numpy_dtype

if TYPE_CHECKING:
    from irlab.passes.heal.heal import Heal

_HELD_OUT: Final = 16
"""One batch in so many is not trained on, and measured before and after."""

_RATE: Final = 2e-4
_LORA_RATE: Final = 3e-3


def distil(
    options: Heal, module: Module, teacher: Module, batches: Sequence[Batch], shelf: Shelf, ctx: Context
) -> Iterator[None]:
    """Train, step by step, and leave the weights on `shelf`."""
    student, teacher = _in_f32(module), _in_f32(teacher)
    parameters = Parameters(student.graph, options.rank if options.lora else None, ctx.device, ctx.seed)
    held = max(1, len(batches) // _HELD_OUT)
    with Activations() as store, Activations() as other:
        mine = Stack(student.graph, batches, ctx.device, store, parameters, options.recompute)
        theirs = Stack(teacher.graph, batches, ctx.device, other)
        objective = Objective(
            options.logits, options.hidden, options.text, options.temperature, matching(mine, theirs), mine.outputs
        )

        def loss(batch: int) -> torch.Tensor:
            with torch.no_grad():
                wanted = theirs(batch)
            return objective(mine(batch), wanted, _ids(batches[batch]))

        def distance() -> float:
            with torch.no_grad():
                found = [objective.prediction(mine(b), theirs(b)) for b in range(len(batches) - held, len(batches))]
            return float(torch.stack(found).mean())

        schedule = Schedule(options.steps, options.rate or (_LORA_RATE if options.lora else _RATE))
        training = Training(parameters.leaves, loss, len(batches) - held, schedule, ctx.seed, shelf)
        before = distance()
        try:
            yield from training.run()
        except FloatingPointError as error:
            raise InputError(f"heal: {error}", "give a smaller rate") from None
        what = "kl" if mine.outputs == ("logits",) else "error"
        metrics = {f"held_out_{what}_before": before, f"held_out_{what}_after": distance()}
        metrics["text_tokens"] = size(batches)
        shelf.put(HEALED, _merged(module, parameters), {"losses": training.losses, "metrics": metrics}, ctx.jobs)
        training.forget()


def _merged(module: Module, parameters: Parameters) -> list[WeightSymbol]:
    """The trained weights, in the dtypes of `module`."""
    found = []
    with torch.no_grad():
        for name in parameters:
            kind = module.weights[name].type
            values = parameters[name].float().cpu().numpy()
            found.append(WeightSymbol(name, Array(kind, values.astype(numpy_dtype(kind.dtype)))))
    return found


def _in_f32(module: Module) -> Module:
    new = module.clone()
    if working_dtype(new.graph) is not f32:
        Cast(dtype="f32").run(new, Context())
    return new


def _ids(batch: Batch) -> torch.Tensor | None:
    ids = batch.get("input_ids")
    return None if ids is None else torch.as_tensor(ids)
