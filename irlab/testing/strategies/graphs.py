"""Random modules that grow op by op: primitives, nn ops, weights, regions, symbolic sizes, opaque calls."""

from __future__ import annotations

from hypothesis import strategies as st

from ... import dims
from ...ir import Graph, Module
from ...types import DType, f32, i64, tensor
from .steps import JUMPS, SMOOTH, Growth, branch, call, grow
from .values import FLOATS, SYMBOLS, Draw, types, words


@st.composite
def modules(
    draw: Draw,
    max_ops: int = 15,
    symbolic: bool = True,
    calls: bool = True,
    regions: bool = True,
    jumps: bool = True,
    names: st.SearchStrategy[str] = words,
    floats: tuple[DType, ...] = FLOATS,
) -> Module:
    """Valid modules of up to `max_ops` steps; one step in a few does not fit and adds nothing.

    `names` are those of inputs, outputs and some values. `jumps` allows ops that turn rounding into any difference
    (comparisons, casts to integers, exp), `calls` opaque calls, which few runs survive, `floats` says which dtypes are
    drawn. Modules may need sizes that are hard to find: to run them see `runnable_modules`.
    """
    graph = Graph()
    input_names = draw(st.lists(names.filter(bool), min_size=1, max_size=3, unique=True))
    inputs = [graph.input(name, draw(types(symbolic, (*floats, i64)))) for name in input_names]
    growth = Growth(draw, graph, inputs[:], symbolic, floats)
    steps = (*SMOOTH, *(JUMPS if jumps else ()), *([call] if calls else []), *([branch] if regions else []))
    grow(growth, steps, draw(st.integers(0, max_ops)))
    for value in draw(st.lists(st.sampled_from(growth.values), max_size=2)):
        if value.op is not None and value.name is None:
            value.name = draw(names)
    outputs = draw(st.lists(st.sampled_from(growth.values), min_size=1, max_size=3))
    graph.set_outputs(dict(zip(draw(st.lists(names, min_size=3, max_size=3, unique=True)), outputs)))
    return Module(graph, draw(names))


@st.composite
def runnable_modules(draw: Draw, max_ops: int = 15, symbolic: bool = True, regions: bool = True) -> Module:
    """Modules in f32 that the interpreter can run and whose numbers rounding cannot upset: for comparing before and
    after. Inputs are [batch, seq, features] or what one of them makes of it; sizes that no input tells do not occur."""
    graph = Graph()
    features = draw(st.integers(1, 8))
    leading = tuple(dims.symbol(name) if symbolic else draw(st.integers(1, 3)) for name in SYMBOLS[:2])
    shapes = [(*leading, features), (leading[1], features), (features,)]
    count = draw(st.integers(1, 3))
    inputs = [graph.input(f"x{i}", tensor(f32, shapes[i])) for i in range(count)]
    growth = Growth(draw, graph, inputs[:], symbolic=False, floats=(f32,))
    grow(growth, (*SMOOTH, *([branch] if regions else [])), draw(st.integers(1, max_ops)))
    made = growth.values[count:] or growth.values
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    graph.set_outputs({f"y{i}": value for i, value in enumerate(outputs)})
    return Module(graph, "random")
