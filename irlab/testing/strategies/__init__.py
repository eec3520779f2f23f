"""Hypothesis strategies that build random valid IR: sizes, types, attribute values, recipes, whole modules.

@given(modules())                    # any ops: what must hold for every module (printing, verifying)
@given(runnable_modules())           # what the interpreter can run: that a pass keeps the numbers
@given(decoders())                   # small causal language models: passes that want attention, rope, a gated MLP

values.py   sizes, types, attribute values, names, recipes
graphs.py   modules that grow op by op        steps.py  the steps by which they grow
decoders.py small decoders
"""

from __future__ import annotations

try:
    import hypothesis as _needed  # noqa: F401
except ImportError as error:
    raise ImportError("irlab.testing.strategies needs hypothesis: pip install 'irlab[test]'") from error

from .decoders import decoders
from .graphs import modules, runnable_modules
from .values import (
    ENCODINGS,
    FLOATS,
    SYMBOLS,
    attribute_values,
    numbers,
    odd_names,
    recipes,
    sizes,
    types,
    weight_symbols,
    words,
)

__all__ = [
    "ENCODINGS",
    "FLOATS",
    "SYMBOLS",
    "attribute_values",
    "decoders",
    "modules",
    "numbers",
    "odd_names",
    "recipes",
    "runnable_modules",
    "sizes",
    "types",
    "weight_symbols",
    "words",
]
