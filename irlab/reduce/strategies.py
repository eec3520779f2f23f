"""What can be left out of a module, or of a pipeline? Each strategy gives a smaller one on which `fails` still holds,
or the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from ..ir import UNKNOWN_LOC, Graph, Loc, Module, Op
from ..pipeline import Step
from ..stand_ins import stand_ins
from ..weight_uses import graphs, replace_weights
from ..weights import Random, Recipe
from .ddmin import ddmin
from .pieces import movable, region_with_ops, with_ops

Fails: TypeAlias = Callable[[Module], bool]
Strategy: TypeAlias = Callable[[Module, Fails], Module]
PipelineFails: TypeAlias = Callable[[Sequence[Step]], bool]
PipelineStrategy: TypeAlias = Callable[[Sequence[Step], PipelineFails], list[Step]]


def cut_ops(module: Module, fails: Fails) -> Module:
    """Leave out ops, with new inputs in the place of what they computed."""
    return _fewer_ops(module, fails, bypass=False)


def bypass_ops(module: Module, fails: Fails) -> Module:
    """Leave out ops, with one of their operands in the place of what they computed."""
    return _fewer_ops(module, fails, bypass=True)


def _fewer_ops(module: Module, fails: Fails, *, bypass: bool) -> Module:
    graph = module.graph

    def build(kept: Sequence[Op]) -> Module:
        return _with_graph(module, with_ops(graph, kept, bypass=bypass))

    ops = movable(graph)
    kept = ddmin(ops, lambda some: fails(build(some)))
    smaller = build(kept)
    return smaller if len(kept) < len(ops) and fails(smaller) else module


def shrink_regions(module: Module, fails: Fails) -> Module:
    """Leave out ops inside of regions."""
    for region in [region for op in list(module.graph.region_ops()) for region in op.regions]:
        if region not in [each for op in module.graph.region_ops() for each in op.regions]:
            continue

        def build(kept: Sequence[Op], region: Graph = region) -> Module:
            graph = module.graph
            return _with_graph(
                module,
                with_ops(graph, movable(graph), bypass=True, regions={region: region_with_ops(region, kept)}),
            )

        ops = movable(region)
        kept = ddmin(ops, lambda some, build=build: fails(build(some)))  # type: ignore[misc]
        if len(kept) < len(ops) and fails(smaller := build(kept)):
            # The copy has other graphs: what is left of them is seen in the next round.
            return smaller
    return module


def drop_outputs(module: Module, fails: Fails) -> Module:
    """Leave out outputs, and what only they need."""
    outputs = module.graph.outputs

    def build(names: Sequence[str]) -> Module:
        new = module.clone()
        mine = new.graph.outputs
        new.graph.set_outputs({name: mine[name] for name in names})
        new.graph.erase_dead()
        new.graph.inputs = [value for value in new.graph.inputs if value.uses]
        return new

    kept = ddmin(list(outputs), lambda names: bool(names) and fails(build(names)))
    return build(kept) if len(kept) < len(outputs) else module


def merge_inputs(module: Module, fails: Fails) -> Module:
    """Let one input stand for others of its type."""

    def build(kept: Sequence[str]) -> Module:
        new = module.clone()
        graph = new.graph
        for value in list(graph.inputs):
            other = next((v for v in graph.inputs if v.type is value.type and v.name in kept and v is not value), None)
            if value.name not in kept and other is not None:
                graph.replace_uses(value, other)
                graph.inputs.remove(value)
        return new

    names = [value.name or "" for value in module.graph.inputs]
    kept = ddmin(names, lambda some: fails(build(some)))
    smaller = build(kept)
    return smaller if len(smaller.graph.inputs) < len(names) and fails(smaller) else module


def random_weights(module: Module, fails: Fails) -> Module:
    """Let random numbers stand in for weights, so that the module needs no files."""
    fixed = {name for name, symbol in module.weights.items() if not isinstance(symbol.recipe, Random)}

    def build(kept: Sequence[str]) -> Module:
        new = module.clone()
        found = stand_ins(new, _is_leaf)
        replace_weights(new.graph, {name: symbol for name, symbol in found.items() if name not in kept})
        return new

    kept = ddmin(sorted(fixed), lambda some: fails(build(some)))
    return build(kept) if len(kept) < len(fixed) and fails(build(kept)) else module


def _is_leaf(recipe: Recipe) -> bool:
    return not recipe.inputs


def drop_metadata(module: Module, fails: Fails) -> Module:
    """Leave out what the module says of its model: configuration, tokenizer, licence."""

    def build(keys: Sequence[str]) -> Module:
        new = module.clone()
        new.metadata = {key: module.metadata[key] for key in keys}
        return new

    kept = ddmin(list(module.metadata), lambda keys: fails(build(keys)))
    return build(kept) if len(kept) < len(module.metadata) else module


def drop_locations(module: Module, fails: Fails) -> Module:
    """Leave out where ops came from; if that matters, all but the module paths."""
    for keep_path in (False, True):
        new = module.clone()
        for graph in graphs(new.graph):
            for op in graph.ops():
                op.loc = Loc.at(op.loc.path) if keep_path and op.loc else UNKNOWN_LOC
        if str(new) != str(module) and fails(new):
            return new
    return module


STRATEGIES: Final[tuple[Strategy, ...]] = (
    # What makes each try cheaper comes first.
    drop_metadata,
    drop_outputs,
    cut_ops,
    bypass_ops,
    shrink_regions,
    merge_inputs,
    random_weights,
    drop_locations,
)


def _with_graph(module: Module, graph: Graph) -> Module:
    new = Module(graph, module.name, module.metadata)
    new.directory = module.directory
    return new


# Pipelines


def drop_steps(steps: Sequence[Step], fails: PipelineFails) -> list[Step]:
    """Leave out passes."""
    return ddmin(steps, fails)


def open_repeats(steps: Sequence[Step], fails: PipelineFails) -> list[Step]:
    """Put what a repeat holds in its place."""
    kept = list(steps)
    for step in steps:
        if step.body:
            at = kept.index(step)
            opened = [*kept[:at], *step.body, *kept[at + 1 :]]
            kept = opened if fails(opened) else kept
    return kept


def drop_options(steps: Sequence[Step], fails: PipelineFails) -> list[Step]:
    """Let options take their defaults, and layers the options of all."""
    kept = list(steps)
    for at in range(len(kept)):
        for part in ("layers", "options"):
            kept[at] = _fewer_options(kept, at, part, fails)
    return kept


def _fewer_options(steps: list[Step], at: int, part: str, fails: PipelineFails) -> Step:
    def with_some(some: Sequence[object]) -> Step:
        return replace(steps[at], **{part: tuple(some)})  # type: ignore[arg-type]

    return with_some(
        ddmin(getattr(steps[at], part), lambda some: fails([*steps[:at], with_some(some), *steps[at + 1 :]]))
    )


PIPELINE_STRATEGIES: Final[tuple[PipelineStrategy, ...]] = (drop_steps, open_repeats, drop_steps, drop_options)
