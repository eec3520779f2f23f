"""What did each pass change? An instrument that keeps the graph before and after every pass.

A state is the list of op versions that the graph consisted of at one time. Versions are values, shared between states,
so that a pass which touches three ops of five thousand costs three versions. They refer to no op: what a pass erases is
freed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ..cost import flops
from ..dims import Size
from ..ir import UNKNOWN_LOC, Loc, Module, Op, Value, Weight
from ..passmgr import Instrument, Pass, PassRecord, stored_bytes
from ..rewrite import Match, Rule
from ..text.printer import is_inline, op_texts, printed_order
from ..weight_uses import operand_name
from ..weights import WeightSymbol
from .families import family_of
from .from_graph import attribute_texts
from .identity import Identities, Origin
from .places import input_path, module_paths

INPUT: Final = "input"
"""The op name of the inputs of a graph, which are shown as ops."""


@dataclass(frozen=True, slots=True)
class OpVersion:
    """An op as it stood between two changes. `uid` is its identity, the same in all its versions.

    `text` is its line of IR text. `outs` are the names of its results; `ins` pairs the name of an operand with the name
    of its value, or its text where it is written inline (a weight, a scalar). `weights` pairs the name of an operand
    with an index into `Timeline.weights`. `path` is the module that the op is shown in.
    """

    uid: int
    opname: str
    family: str
    text: str
    outs: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    ins: tuple[tuple[str, str], ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()
    weights: tuple[tuple[str, int], ...] = ()
    path: str = ""
    loc: Loc = UNKNOWN_LOC
    flops: Size | None = 0


@dataclass(frozen=True)
class State:
    """The graph at one time: indices into `Timeline.versions`, producers first, and the bytes of its weights."""

    versions: tuple[int, ...]
    bytes: int


@dataclass
class RuleWork:
    """What a rule did in one pass. Ops that are written inline (weights, scalars) are not counted."""

    ops_matched: int = 0
    ops_made: int = 0


@dataclass
class Step:
    """One run of a pass. `before` and `after` index `Timeline.states`; `depth` counts the pipelines around it."""

    text: str
    summary: str
    exactness: str
    depth: int
    before: int
    after: int
    record: PassRecord
    rules: dict[str, RuleWork] = field(default_factory=dict)
    error: str = ""


class Timeline(Instrument):
    """Keeps what every pass did. Give it to a PassManager, then look at `states` and `steps`."""

    wants_rewrites = True

    def __init__(self) -> None:
        self.name = ""
        self.versions: list[OpVersion] = []
        self.weights: list[WeightSymbol] = []
        self.states: list[State] = []
        self.steps: list[Step] = []
        self._open: list[Step] = []
        self._identities = Identities()
        self._described: dict[Op, tuple[object, int]] = {}
        self._index: dict[OpVersion, int] = {}
        self._weights_by_name: dict[str, list[int]] = {}

    @property
    def origins(self) -> dict[int, Origin]:
        """What made each op that was not there at first, by its uid."""
        return self._identities.origins

    def begin(self, module: Module) -> None:
        """Keep the module as it is before any pass. Only a pipeline without passes needs the call."""
        if not self.states:
            self.name = module.name
            self._keep(module)

    def before_pass(self, step: Pass, module: Module) -> None:
        self.begin(module)
        at = len(self.states) - 1
        shown = Step(str(step), type(step).summary(), step.exactness, len(self._open), at, at, PassRecord(step.name))
        self.steps.append(shown)
        self._open.append(shown)

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        self._keep(module)
        shown = self._open.pop()
        shown.after, shown.record = len(self.states) - 1, record

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        # A pass that stopped half-way may leave a graph that cannot be read: the state before it stays the last.
        if self._open:
            self._open.pop().error = str(error) or type(error).__name__

    def on_rewrite(self, rule: Rule, match: Match, values: tuple[Value, ...]) -> None:
        matched, made = self._identities.rewritten(rule.name, match, values)
        for shown in self._open:
            work = shown.rules.setdefault(rule.name, RuleWork())
            work.ops_matched += matched
            work.ops_made += made

    def _keep(self, module: Module) -> None:
        state = State(self._look(module), stored_bytes(module))
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def _look(self, module: Module) -> tuple[int, ...]:
        """The versions that the graph consists of now; only ops that changed are described again."""
        graph, known = module.graph, self._identities
        order = printed_order(graph)
        known.update(graph, order)
        shown = [op for op in order if not is_inline(op)]
        paths = module_paths(order)
        signatures = {op: self._signature(op, paths[op]) for op in shown}
        unknown = (None, 0)
        changed = [op for op in shown if self._described.get(op, unknown)[0] != signatures[op] or op.region_names]
        texts = op_texts(graph, changed, known.names)
        described = {op: (signatures[op], self._number(self._version(op, texts[op], paths[op]))) for op in changed}
        self._described = {op: described.get(op) or self._described[op] for op in shown}
        inputs = [self._number(self._input(value, input_path(value, paths))) for value in graph.inputs]
        return (*inputs, *[self._described[op][1] for op in shown])

    def _signature(self, op: Op, path: str) -> object:
        """While it stays the same, `op` does too: attributes never change in place, values keep their names unless what
        they are called depends on another op."""
        return op.operands, [self._identities.names.get(v) for v in op.operands if v is not None], path, op.loc

    def _input(self, value: Value, path: str) -> OpVersion:
        name, type_ = self._identities.names[value], str(value.type)
        return OpVersion(self._identities.uids[value], INPUT, INPUT, f"{name} : {type_}", (name,), (type_,), path=path)

    def _version(self, op: Op, text: str, path: str) -> OpVersion:
        known = self._identities
        operands = [(operand_name(op, slot), value) for slot, value in enumerate(op.operands) if value is not None]
        return OpVersion(
            uid=known.uids[op],
            opname=op.opname,
            family=family_of(type(op)).name,
            text=text,
            outs=tuple([known.names[result] for result in op.results]),
            types=tuple([str(result.type) for result in op.results]),
            ins=tuple([(name, known.names[value]) for name, value in operands if value in known.names]),
            attributes=tuple(attribute_texts(op).items()),
            weights=tuple([(name, self._weight(v.op.symbol)) for name, v in operands if isinstance(v.op, Weight)]),
            path=path,
            loc=op.loc or UNKNOWN_LOC,
            flops=flops(op),
        )

    def _number(self, version: OpVersion) -> int:
        index = self._index.get(version)
        if index is None:
            index = self._index[version] = len(self.versions)
            self.versions.append(version)
        return index

    def _weight(self, symbol: WeightSymbol) -> int:
        alike = self._weights_by_name.setdefault(symbol.name, [])
        for index in alike:
            if self.weights[index] is symbol or self.weights[index] == symbol:
                return index
        alike.append(len(self.weights))
        self.weights.append(symbol)
        return alike[-1]
