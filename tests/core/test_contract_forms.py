"""The forms in which a third party writes a rule and a pass, word for word: they work, and tools find no fault."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import irlab_opt

import irlab
from irlab import Context, Module, Rule, nn
from irlab.scaffold import new_plugin
from irlab.testing import assert_equivalent

ROOT = Path(irlab.__file__).parents[1]

TEXT = '''
from dataclasses import dataclass
from irlab import Context, Match, Module, Pass, Rule, Value, nn, p     # p: pattern constructors, one per op, + maybe, any_of, const, var

class FuseRMSNorm(Rule):
    """x * rsqrt(mean(x^2) + eps) * w  ->  nn.rms_norm"""
    def pattern(self, x, w, eps):
        xf = p.maybe(p.cast, x)
        n = xf * p.rsqrt(p.mean(xf ** 2, axes=[-1]) + p.const(eps))
        return p.maybe(p.cast, n) * w
    def where(self, m: Match) -> bool | str:
        return m.w.type.rank == 1 or "weight must be rank 1"
    def rewrite(self, m: Match) -> Value:
        return nn.rms_norm(m.x, m.w, eps=m.eps)

@dataclass(frozen=True)
class QuantizeEmbeddings(Pass, name="quantize-embeddings", exactness="lossy"):
    """Stores the embedding table in 8 bits."""          # the line that --list-passes shows
    bits: int = 8                                         # an option: quantize-embeddings{bits=4}
    def run(self, module: Module, ctx: Context) -> None:
        for op in module.graph.find(nn.Embedding):
            ...
'''  # noqa: E501

NORM = """irlab 1
module "norm"
@w : f32[8] = random()
graph(%x: f32[batch, 8]) {
  %0 = prim.pow(%x, f32(2.0))
  %1 = prim.mean(%0) {axes=[-1]}
  %2 = prim.add(%1, f32(1e-6))
  %3 = prim.rsqrt(%2)
  %4 = prim.mul(%x, %3)
  %5 = prim.mul(@w, %4)
  return y=%5
}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contract") / "my_pass.py"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def rule(file: Path) -> Rule:
    spec = importlib.util.spec_from_file_location("contract_my_pass", file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    made: Rule = loaded.FuseRMSNorm()
    return made


def test_the_rule_fuses(rule: Rule) -> None:
    module = irlab.parse(NORM)
    before = module.clone()
    assert Context().rewrite(module.graph, [rule]) == 1
    (norm,) = module.graph.find(nn.RMSNorm)
    assert norm.eps == pytest.approx(1e-6)
    assert_equivalent(before, module)


def test_the_reason_of_where_is_shown(rule: Rule) -> None:
    from irlab.explain import why_not

    module: Module = irlab.parse(NORM.replace("@w : f32[8]", "@w : f32[1, 8]"))
    assert Context().rewrite(module.graph, [rule]) == 0
    assert "weight must be rank 1" in why_not(module.graph, rule)[0].reason


def test_the_pass_is_listed_configured_and_run(file: Path) -> None:
    assert "Stores the embedding table in 8 bits." in irlab_opt("--load", file, "--list-passes").stdout
    described = irlab_opt("--load", file, "--help-pass", "quantize-embeddings").stdout
    assert "bits" in described and "lossy" in described
    done = irlab_opt("--load", file, "demo", "-p", "quantize-embeddings{bits=4}", "--stats")
    assert done.returncode == 0, done.stderr
    wrong = irlab_opt("--load", file, "demo", "-p", "quantize-embeddings{bit=4}")
    assert wrong.returncode == 2 and "did you mean 'bits'?" in wrong.stderr


def test_pyright_is_content(file: Path) -> None:
    """With the default rules of pyright; basedpyright carries its own Node."""
    pytest.importorskip("basedpyright")
    assert pyright(file.parent, file.parent / "settings") == (1, [])


def test_pyright_is_content_with_a_new_plugin(tmp_path: Path) -> None:
    pytest.importorskip("basedpyright")
    assert pyright(new_plugin("my-passes", tmp_path), tmp_path / "settings") == (4, [])


def pyright(folder: Path, settings: Path) -> tuple[int, list[str]]:
    """How many files of `folder` pyright looked at, and what it found."""
    settings.mkdir()
    wanted = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "include": [str(folder)]}
    (settings / "pyrightconfig.json").write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=settings, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    return report["summary"]["filesAnalyzed"], [d["message"] for d in report["generalDiagnostics"]]


def test_ruff_is_content(file: Path) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--isolated", "--select=E4,E7,E9,F", file]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
