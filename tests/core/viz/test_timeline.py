"""What a timeline keeps of a pipeline: who is who across rewriting, what changed, and how much that costs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import irlab
from irlab import Context, GraphBuilder, Module, Pass, Rule, nn, p, prim
from irlab.errors import InputError
from irlab.passmgr import PassManager, RulePass
from irlab.schedule import build_pipeline
from irlab.viz.timeline import INPUT, OpVersion, Timeline


class SiluRule(Rule, name="make-silu"):
    """x * sigmoid(x)  ->  nn.silu(x)"""

    def pattern(self, x):
        return x * p.sigmoid(x)

    def rewrite(self, m):
        return nn.silu(m.x)


@dataclass(frozen=True)
class MakeSilu(RulePass, name="make-silu"):
    """Recognises SiLU."""

    def rules(self):
        return [SiluRule()]


@dataclass(frozen=True)
class Rebuild(Pass, name="rebuild"):
    """Replaces every exp by another exp."""

    def run(self, module: Module, ctx: Context) -> None:
        for op in module.graph.find(prim.Exp):
            module.graph.replace(op, prim.exp(op.operands[0]), made_by="rebuild")


@dataclass(frozen=True)
class Stop(Pass, name="stop"):
    """Refuses everything."""

    def run(self, module: Module, ctx: Context) -> None:
        raise InputError("stop: not today")


def two_activations() -> Module:
    b = GraphBuilder("two")
    x = b.input("x", "f32", ("batch", 4))
    y = b.add(prim.exp(x), "first")
    z = b.add(prim.mul(y, prim.sigmoid(y)), "second")
    b.output(out=prim.neg(z))
    return b.module()


def watch(module: Module, *passes: Pass) -> Timeline:
    timeline = Timeline()
    PassManager(passes, Context(), (timeline,)).run(module)
    return timeline


def state(timeline: Timeline, index: int) -> dict[str, OpVersion]:
    """The ops of a state by the name of their first result."""
    versions = [timeline.versions[i] for i in timeline.states[index].versions]
    return {version.outs[0] if version.outs else version.opname: version for version in versions}


def test_what_replaces_a_value_takes_its_name_and_its_readers_stay_as_they_were():
    timeline = watch(two_activations(), MakeSilu())
    before, after = state(timeline, 0), state(timeline, 1)
    assert [v.text for v in before.values()] == [
        "%x : f32[batch, 4]",
        "%0 = prim.exp(%x) : f32[batch, 4]",
        "%1 = prim.sigmoid(%0) : f32[batch, 4]",
        "%2 = prim.mul(%0, %1) : f32[batch, 4]",
        "%3 = prim.neg(%2) : f32[batch, 4]",
        "return out=%3",
    ]
    assert after["%2"].text == "%2 = nn.silu(%0) : f32[batch, 4]"
    assert after["%3"] is before["%3"] and after["return"] is before["return"]
    assert "%1" not in after


def test_an_op_remembers_the_rule_and_the_ops_it_was_made_from():
    timeline = watch(two_activations(), MakeSilu())
    before, silu = state(timeline, 0), state(timeline, 1)["%2"]
    origin = timeline.origins[silu.uid]
    assert origin.rule == "make-silu" and set(origin.sources) == {before["%1"].uid, before["%2"].uid}
    assert silu.uid not in {version.uid for version in before.values()}
    (step,) = timeline.steps
    assert vars(step.rules["make-silu"]) == {"ops_matched": 2, "ops_made": 1}


def test_an_op_in_the_place_of_one_of_its_kind_is_the_same_op_changed():
    timeline = watch(two_activations(), Rebuild())
    before, after = state(timeline, 0), state(timeline, 1)
    assert after["%0"].uid == before["%0"].uid
    assert after["%0"].loc.made_by == "rebuild" and not before["%0"].loc.made_by


def test_states_that_are_equal_are_kept_once_and_failures_with_their_reason():
    timeline = Timeline()
    manager = PassManager([MakeSilu(), MakeSilu(), Stop()], Context(), (timeline,))
    with pytest.raises(InputError):
        manager.run(two_activations())
    assert [(s.before, s.after, s.error) for s in timeline.steps] == [(0, 1, ""), (1, 1, ""), (1, 1, "stop: not today")]
    assert len(timeline.states) == 2


def test_nested_pipelines_show_as_steps_inside_a_step():
    timeline = Timeline()
    passes = build_pipeline("repeat{n=2}(canonicalize,cse)")
    PassManager(passes, Context(), (timeline,)).run(irlab.load("demo"))
    assert [step.depth for step in timeline.steps[:3]] == [0, 1, 1]
    outer = timeline.steps[0]
    assert (outer.before, outer.after) == (0, len(timeline.states) - 1)


def test_quantising_changes_ops_through_their_weights_and_leaves_the_rest():
    timeline = Timeline()
    PassManager(build_pipeline("fuse,quantize{exclude=*.mlp.*}"), Context(), (timeline,)).run(irlab.load("demo"))
    before, after = state(timeline, 1), state(timeline, 2)
    changed = [name for name in after if after[name] is not before[name]]
    assert len(changed) == 16 and {after[name].opname for name in changed} == {"nn.linear"}
    linear = after[changed[0]]
    old, new = (timeline.weights[v.weights[0][1]] for v in (before[changed[0]], linear))
    assert old.name == new.name and old.type.encoding is None and new.type.encoding is not None
    assert linear.text == before[changed[0]].text


def test_versions_are_shared_between_states():
    timeline = Timeline()
    PassManager(build_pipeline("fuse,kv-cache"), Context(), (timeline,)).run(irlab.load("demo"))
    assert len(timeline.versions) < sum(len(s.versions) for s in timeline.states) * 0.8
    names = [version.outs[0] for version in state(timeline, 2).values() if version.opname == INPUT]
    assert {"%input_ids", "%position_ids", "%past_key_values.0.key"} <= set(names)
