"""A graph prepared for running: a flat list of steps that know which values die after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, IRError, IrlabError
from ..ir import Graph, Module, Op, Return, Value, Weight, place_of
from ..ops.call import Call
from ..ops.literals import Constant, Iota
from ..ops.nn import NNOp
from .kernels import Kernel, Tensors, kernel_of
from .meaning import decomposition
from .sizes import Sizes
from .torch_types import Dtypes, as_input, torch_dtype
from .weights import WeightReader

_SOURCES = (Weight, Constant, Iota)
"""Ops that are run again for each op that reads them, rather than kept: a tied embedding would otherwise stay in memory
from the first op to the last."""


@dataclass(frozen=True, slots=True)
class Step:
    """One op to run: which slots it reads (-1 is a missing operand), writes, and empties afterwards."""

    op: Op
    kernel: Kernel
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]


@dataclass
class Run:
    """What kernels see of one run beside their operands."""

    sizes: Sizes
    weight: WeightReader
    device: str
    checked: bool
    program: Program

    @property
    def dtypes(self) -> Dtypes:
        """What tensors of each dtype are in torch."""
        return self.program.dtypes

    def shape(self, shape: tuple[Any, ...]) -> tuple[int, ...]:
        return self.sizes.shape(shape)

    def region(self, region: Graph, operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run a region of an op on `operands`."""
        return self.program.nested(region).execute(list(operands), self)


class Program:
    """A graph ready to run many times.

    `outputs` names the ones wanted (all by default; what only others need is not computed). `weights` replaces weights
    by name; `cache_bytes` bounds the weights that stay in memory between runs. With `checked` every result is compared
    with its declared type. `dtypes`: in what it computes. Changing the graph afterwards does not change the program.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        device: str = "cpu",
        outputs: Sequence[str] | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
        cache_bytes: int = 0,
        checked: bool = False,
        dtypes: Dtypes = torch_dtype,
    ) -> None:
        self.device = device
        self.checked = checked
        self.dtypes = dtypes
        self._reader = WeightReader(device, cache_bytes, weights, dtypes)
        self._nested: dict[int, Program] = {}
        self._inputs = [(value.name or "", value.type) for value in graph.inputs]
        available = graph.outputs
        for name in outputs or ():
            if name not in available:
                raise InputError(f"the graph has no output '{name}'", f"it has {', '.join(available)}")
        self._names = tuple(available) if outputs is None else tuple(outputs)
        self._compile(graph, [available[name] for name in self._names])

    def __call__(self, inputs: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> dict[str, torch.Tensor]:
        """Run on `inputs` by name; `sizes` are symbols that are known beforehand, for those that no input tells.

        Raises InputError for a missing, unknown or ill-shaped input.
        """
        unknown = inputs.keys() - {name for name, _ in self._inputs}
        if unknown:
            raise InputError(
                f"there is no input '{min(unknown)}'", f"inputs are {', '.join(name for name, _ in self._inputs)}"
            )
        missing = [name for name, _ in self._inputs if name not in inputs]
        if missing:
            raise InputError(f"input '{missing[0]}' is missing")
        tensors = [as_input(inputs[name], type, name, self.device, self.dtypes) for name, type in self._inputs]
        bound = Sizes(sizes)
        arrivals = [(f"input '{n}'", type.shape, tuple(t.shape)) for (n, type), t in zip(self._inputs, tensors)]
        bound.bind(arrivals)
        results = self.execute(tensors, Run(bound, self._reader, self.device, self.checked, self))
        return dict(zip(self._names, results))

    def execute(self, operands: list[torch.Tensor], run: Run) -> tuple[torch.Tensor, ...]:
        """Run on tensors in the order of the graph's inputs, as part of `run`."""
        run = Run(run.sizes, run.weight, run.device, run.checked, self)
        slots: list[torch.Tensor | None] = [*operands, *[None] * (self._slot_count - len(operands))]
        operands.clear()
        for step in self._steps:
            try:
                results = _as_tuple(step.kernel(step.op, run, *[None if i < 0 else slots[i] for i in step.reads]))
            except IrlabError:
                raise
            except (RuntimeError, IndexError) as error:
                raise InputError(f"{place_of(step.op)} failed: {str(error).strip().splitlines()[0]}") from error
            if type(step.op) is Call or run.checked:
                _check_results(step.op, results, run)
            for slot, result in zip(step.writes, results):
                slots[slot] = result
            for slot in step.frees:
                slots[slot] = None
        return tuple([slots[i] for i in self._returned])  # type: ignore[misc]

    def nested(self, region: Graph) -> Program:
        """The program of a region, prepared once."""
        found = self._nested.get(id(region))
        if found is None:
            found = self._nested[id(region)] = self._part(region)
        return found

    def _part(self, graph: Graph) -> Program:
        return Program(graph, device=self.device, checked=self.checked, dtypes=self.dtypes)

    def _compile(self, graph: Graph, wanted: list[Value]) -> None:
        order = _needed(graph, wanted)
        slot_of: dict[Value, int] = {value: i for i, value in enumerate(graph.inputs)}
        plan: list[tuple[Op, Kernel, tuple[int, ...], tuple[int, ...]]] = []
        count = len(slot_of)

        def source(value: Value) -> int:
            nonlocal count
            assert value.op is not None
            plan.append((value.op, kernel_of(type(value.op)), (), (count,)))
            count += 1
            return count - 1

        def read(value: Value | None) -> int:
            if value is None:
                return -1
            return source(value) if isinstance(value.op, _SOURCES) else slot_of[value]

        for op in order:
            reads = tuple([read(value) for value in op.operands])
            writes = tuple(range(count, count + len(op.results)))
            count += len(writes)
            slot_of.update(zip(op.results, writes))
            plan.append((op, self._kernel(op), reads, writes))
        self._returned = tuple([read(value) for value in wanted])
        self._slot_count = count
        self._steps = _with_last_uses(plan, set(self._returned))

    def _kernel(self, op: Op) -> Kernel:
        try:
            return kernel_of(type(op))
        except IRError:
            if not isinstance(op, NNOp):
                raise
        # An op that some plug-in declared: its decomposition is its meaning.
        meaning = self._part(decomposition(op))

        def run_decomposition(op: Op, run: Run, *operands: torch.Tensor | None) -> Tensors:
            return meaning.execute([t for t in operands if t is not None], run)

        return run_decomposition


def evaluate(
    module: Module | Graph,
    inputs: Mapping[str, Any],
    *,
    device: str = "cpu",
    outputs: Sequence[str] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Run `module` once on `inputs` (tensors, arrays or nested lists by name); the outputs by name.

    Weights are read one at a time and not kept; `weights` replaces some by name, and gradients flow to those that
    require them. Inputs of a cached decoder that are missing (the cache, masks, positions) are filled in: see
    `irlab.decoder`. Raises InputError for inputs that do not fit.
    """
    from ..decoder import with_defaults

    graph = module.graph if isinstance(module, Module) else module
    return Program(graph, device=device, outputs=outputs, weights=weights)(with_defaults(graph, inputs))


def _needed(graph: Graph, wanted: Sequence[Value]) -> list[Op]:
    """The ops that `wanted` depends on, in order, without those that are run again for each reader."""
    live: set[Op] = set()
    stack = [value.op for value in wanted]
    while stack:
        op = stack.pop()
        if op is not None and op not in live:
            live.add(op)
            stack.extend([v.op for v in op.operands if v is not None])
    return [op for op in graph.topo() if op in live and not isinstance(op, (*_SOURCES, Return))]


def _with_last_uses(plan: list[tuple[Op, Kernel, tuple[int, ...], tuple[int, ...]]], returned: set[int]) -> list[Step]:
    """The steps, each with the slots that nothing later reads."""
    seen = {-1, *returned}
    steps: list[Step] = []
    for op, kernel, reads, writes in reversed(plan):
        frees = tuple({slot for slot in (*reads, *writes) if slot not in seen})
        seen.update(frees)
        steps.append(Step(op, kernel, reads, writes, frees))
    steps.reverse()
    return steps


def _as_tuple(result: Tensors) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _check_results(op: Op, results: tuple[torch.Tensor, ...], run: Run) -> None:
    """Compare with the declared types; sizes that only the run could tell become known."""
    if len(results) != len(op.results):
        raise IRError(f"{place_of(op)} gave {len(results)} results, declared are {len(op.results)}", op=op)
    run.sizes.bind([(f"a result of {place_of(op)}", v.type.shape, tuple(t.shape)) for v, t in zip(op.results, results)])
    for value, tensor in zip(op.results, results):
        if tensor.dtype is not run.dtypes(value.type.dtype):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise IRError(f"{place_of(op)} gave {kind}, declared is {value.type}", op=op)
