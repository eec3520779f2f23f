"""How is each costly recipe computed once, however many outputs read it? Into a file that all of them read.

Weights are streamed once: codes (and factors) are made by threads, a chunk at a time, into one file on disk; recipes
are then exchanged for references into it. Other weights are copied from where they are: to read them again is cheap.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .ir import Module
from .store import stored, write_weights
from .weight_uses import replace_weights
from .weights import Cached, Encode, Encoded, Recipe, WeightSymbol, rebuilt

if TYPE_CHECKING:
    from .passmgr import Context
    from .target import Backend

_FILE: Final = "codes.safetensors"


@contextmanager
def for_outputs(module: Module, backends: Sequence[Backend], directory: Path, ctx: Context) -> Iterator[Module]:
    """`module`, with what is costly computed once if all in all `backends` would read its weights more than once."""
    if sum(backend.readings for backend in backends) > 1:
        with computed_once(module, directory, ctx) as ready:
            yield ready
    else:
        yield module


@contextmanager
def computed_once(module: Module, directory: Path, ctx: Context) -> Iterator[Module]:
    """While the block lasts: `module` with what is costly of its weights in a file under `directory`.

    Equal recipes are computed once. Where nothing is to be computed, or the disk is too small, `module` itself.
    """
    costly = _costly(module)
    size = sum(WeightSymbol(name, recipe).size_bytes for recipe, name in costly.items())
    if not costly or size > shutil.disk_usage(directory).free:
        yield module
        return
    with tempfile.TemporaryDirectory(dir=directory, prefix=".irlab-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / _FILE
        with ctx.clock.span("compute weights") as span:
            write_weights([WeightSymbol(name, recipe) for recipe, name in costly.items()], file, ctx.jobs)
            span.weights_computed = len(costly)
        kept = {recipe: _kept(recipe, stored(name, recipe.type, file, Cached)) for recipe, name in costly.items()}
        new = module.clone()
        changed = {n: WeightSymbol(n, rebuilt(s.recipe, kept.get)) for n, s in module.weights.items()}
        replace_weights(new.graph, changed)
        yield new


def _kept(recipe: Recipe, symbol: WeightSymbol) -> Recipe:
    """What is read instead of `recipe`. Of codes it stays known what they were made from: some outputs ask."""
    if isinstance(recipe, Encode):
        return Encoded(recipe.source, recipe.encoding, recipe.norm, recipe.importance, kept=symbol.recipe)
    return symbol.recipe


def _costly(module: Module) -> dict[Recipe, str]:
    """What is costly, each with a name: that of a weight made from it."""
    found: dict[Recipe, str] = {}
    names: set[str] = set()

    def visit(recipe: Recipe, name: str) -> None:
        if recipe.costly:
            if recipe not in found:
                found[recipe] = name if name not in names else f"{name}.{len(found)}"
                names.add(found[recipe])
            return
        for source in recipe.inputs:
            visit(source, name)

    for name, symbol in module.weights.items():
        visit(symbol.recipe, name)
    return found
