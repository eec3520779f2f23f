"""How fast are patterns matched and rewritten, and IR text printed and parsed? Beside xDSL, tinygrad and onnxscript.

    python tools/bench/rewrite.py [--json FILE] [--repeat N] [--no-peers]

Two workloads: a chain of 100,000 ops, mul and add by turns, fused to fma; and 2,000 transformer blocks with naive
RMSNorm (36,000 ops, two norms of six ops in each block). Figures are thousand ops of the graph per second of CPU, the
best of N runs, with Python's cyclic collector paused during the rewriting and, beside it, left as it is; locations and
events on, verification off. Peers do the same work on the same machine in the same run under the same policy; every
figure comes from a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import rewrite_peers

from irlab import Graph, GraphBuilder, Match, Module, Op, Rule, Value, nn, p, prim
from irlab.ir import expression
from irlab.ops.literals import constant
from irlab.pattern import Pattern
from irlab.rewrite import Rewrites, rewrite
from irlab.text import parse_module, print_module
from irlab.types import TensorType, f32

PRINT_GOAL, PARSE_GOAL = 200, 100
UNIT = "thousand ops per CPU second"


class Fma(Op, opname="bench.fma"):
    """x * y + z."""

    x: Value
    y: Value
    z: Value

    def infer(self) -> TensorType:
        return self.x.type


fma = expression(Fma)


class FuseFma(Rule):
    """x * a + b  ->  fma(x, a, b)"""

    def pattern(self, x, a, b) -> Pattern:
        return x * a + b

    def rewrite(self, m: Match) -> Value:
        return fma(m.x, m.a, m.b)


class FuseRMSNorm(Rule):
    """x * rsqrt(mean(x^2) + eps) * w  ->  nn.rms_norm"""

    def pattern(self, x, w, eps) -> Pattern:
        xf = p.maybe(p.cast, x)
        n = xf * p.rsqrt(p.mean(xf**2, axes=[-1]) + p.const(eps))
        return p.maybe(p.cast, n) * w

    def where(self, m: Match) -> bool | str:
        return m.w.type.rank == 1 or "weight must be rank 1"

    def rewrite(self, m: Match) -> Value:
        return nn.rms_norm(m.x, m.w, eps=m.eps)


def inert_rules() -> list[Rule]:
    """40 rules that never fire here. 30 begin with the ops that the fused patterns begin with; of 20 of these the
    operands fit too, on one workload or the other, and the difference lies deeper."""
    unary = ("exp", "sin", "cos", "tanh", "erf", "sigmoid", "abs", "sqrt", "log", "floor")
    families: tuple[Callable[[Any, Any, Any, Any], Pattern], ...] = (
        lambda u, x, y, z: x * u(y) + z,
        lambda u, x, y, z: x * p.rsqrt(u(y)) * z,
        lambda u, x, y, z: (x + u(y)) * z,
        lambda u, x, y, z: u(x - y) - z,
    )

    def rule(family: Callable[[Any, Any, Any, Any], Pattern], op: str, number: int) -> Rule:
        class Inert(Rule, name=f"inert-{number}-{op}"):
            def pattern(self, x, y, z) -> Pattern:
                return family(getattr(p, op), x, y, z)

        return Inert()

    return [rule(family, op, number) for number, family in enumerate(families) for op in unary]


def chain(count: int) -> Module:
    """x = x * a + b, `count` times."""
    b = GraphBuilder("chain")
    x, scale, shift = (b.input(name, "f32", ("batch", 64)) for name in "xab")
    for i in range(count):
        path = f"layers.{i // 100}"
        x = b.add(prim.add(b.add(prim.mul(x, scale), path), shift), path)
    b.output(x=x)
    return b.module()


def blocks(count: int) -> Module:
    """Transformer blocks as rewriting sees them: norm, matmul, residual, norm, matmul, relu, matmul, residual."""
    b = GraphBuilder("blocks")
    x = b.input("x", "f32", ("batch", "seq", 64))
    weight, matrix = b.input("w", "f32", (64,)), b.input("m", "f32", (64, 64))
    two, eps = b.add(constant(2.0, f32)), b.add(constant(1e-6, f32))
    for i in range(count):

        def place(value: Value, path: str = f"layers.{i}") -> Value:
            return b.add(value, path)

        def norm(x: Value, place: Callable[[Value], Value] = place) -> Value:
            mean = place(prim.mean(place(prim.pow(x, two)), (-1,)))
            inverse = place(prim.rsqrt(place(prim.add(mean, eps))))
            return place(prim.mul(place(prim.mul(x, inverse)), weight))

        x = place(prim.add(x, place(prim.matmul(norm(x), matrix))))
        hidden = place(prim.relu(place(prim.matmul(norm(x), matrix))))
        x = place(prim.add(x, place(prim.matmul(hidden, matrix))))
    b.output(x=x)
    return b.module()


@dataclass(frozen=True)
class Workload:
    """`build(count)` makes `ops` ops per unit, of which `rule` makes `rewrites`; peers know it as `name`."""

    name: str
    build: Callable[[int], Module]
    rule: Rule
    count: int
    ops: int
    rewrites: int
    goal_paused: int
    goal: int


WORKLOADS = (
    Workload("chain", chain, FuseFma(), 50_000, 2, 1, 400, 200),
    Workload("rms_norm", blocks, FuseRMSNorm(), 2_000, 18, 2, 900, 450),
)


@dataclass
class Row:
    """One line of the table; `ratio` > 1 means that ours is better."""

    name: str
    metric: str
    ours: float
    peer_name: str
    peer: float | None
    ratio: float | None


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def our_rate(workload: Workload, paused: bool, repeat: int, more_rules: bool) -> float:
    """Thousand ops per CPU second of the best of `repeat` runs, with or without the inert rules."""
    rules = [*(inert_rules() if more_rules else ()), workload.rule]
    for each in rules:
        assert each.matchers  # compiled once per process, so not a part of what is measured
    best = 0.0
    for _ in range(repeat):
        graph = workload.build(workload.count).graph
        gc.collect()
        events = itertools.count()
        done: list[Rewrites] = []

        def work(graph: Graph = graph, events: itertools.count[int] = events, done: list[Rewrites] = done) -> None:
            done.append(rewrite(graph, rules, on_event=lambda rule, m, new: next(events), pause_gc=paused))

        best = max(best, workload.count * workload.ops / seconds(work) / 1000)
        assert done[0].total == next(events) == workload.count * workload.rewrites
    return best


def peer_rate(name: str, workload: Workload, paused: bool, repeat: int) -> float | None:
    """As `our_rate`, for a peer; None where it is not installed."""
    peer = rewrite_peers.PEERS[name]
    best = 0.0
    for _ in range(repeat):
        try:
            work = peer(workload.name, workload.count)
        except ModuleNotFoundError:
            return None
        gc.collect()
        if paused:
            gc.disable()
        try:
            best = max(best, workload.count * workload.ops / seconds(work) / 1000)
        finally:
            gc.enable()
        del work
    return best


Run: TypeAlias = Callable[..., Any]
"""Calls a function with arguments: here, or in a process of its own."""


def here(function: Callable[..., Any], *arguments: object) -> Any:
    """Call `function` in this process."""
    return function(*arguments)


def apart(function: Callable[..., Any], *arguments: object) -> Any:
    """Call `function` in a fresh process: what others leave in memory would slow it down."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def rewriting_rows(workload: Workload, repeat: int, peers: bool, run: Run) -> Iterator[Row]:
    """Speed of the driver, beside its goal and the peers."""
    for paused in (True, False):
        title = f"{workload.name}, collector {'paused' if paused else 'on'}"
        ours = run(our_rate, workload, paused, repeat, False)
        goal = workload.goal_paused if paused else workload.goal
        yield Row(title, UNIT, ours, "goal", goal, ours / goal)
        slower = run(our_rate, workload, paused, repeat, True)
        yield Row(f"{title}, 40 more rules", UNIT, slower, "half of ours without", ours / 2, slower / (ours / 2))
        for name in rewrite_peers.PEERS if peers else ():
            rate = run(peer_rate, name, workload, paused, min(repeat, 2))
            yield Row(title, UNIT, ours, name, rate, rate and ours / rate)


def text_rows(count: int, repeat: int) -> Iterator[Row]:
    """Speed of printing and parsing `count` blocks."""
    module = blocks(count)
    size = len(module.graph)
    printed = [print_module(module)]
    printing = min(seconds(lambda: print_module(module)) for _ in range(repeat))
    parsing = min(seconds(lambda: parse_module(printed[0])) for _ in range(repeat))
    for name, took, goal in (("print", printing, PRINT_GOAL), ("parse", parsing, PARSE_GOAL)):
        rate = size / took / 1000
        yield Row(f"{name} IR text", UNIT, rate, "goal", goal, rate / goal)


def show(row: Row) -> None:
    """Print one line of the table."""
    peer = "not installed" if row.peer is None else f"{row.peer:8.1f}"
    ratio = "" if row.ratio is None else f"{row.ratio:6.2f}x"
    print(f"{row.name:40} {row.ours:8.1f}   {row.peer_name:22} {peer:>8} {ratio}", flush=True)


def main() -> None:
    """Measure, print a table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="the best of N runs counts (default 5)")
    parser.add_argument("--no-peers", action="store_true", help="measure irlab only")
    arguments = parser.parse_args()
    # Benchmarks beside this one are called like the packages they measure, and would hide them.
    folder = Path(__file__).resolve().parent
    sys.path = [*(entry for entry in sys.path if Path(entry or ".").resolve() != folder), str(folder)]
    print(f"{UNIT:40} {'irlab':>8}   {'beside':22} {'':>8} ratio (> 1: irlab is better)")
    rows: list[Row] = []
    measured = [rewriting_rows(workload, arguments.repeat, not arguments.no_peers, apart) for workload in WORKLOADS]
    for row in itertools.chain(*measured, text_rows(WORKLOADS[1].count, arguments.repeat)):
        rows.append(row)
        show(row)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
