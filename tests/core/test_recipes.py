"""Recipes: what is written runs again to the same bytes; what is wrong or has changed is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, fails, irlab_opt
from tiny_models import tiny_model

import irlab
from irlab.errors import InputError, IrlabError
from irlab.model_fingerprint import model_fingerprint
from irlab.recipes import Model, RunRecipe, read_recipe, relative, resolved, write_recipe
from irlab.schedule import build_pipeline
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol

RECIPE = """pipeline = "fuse,quantize{scheme=int4},kv-cache"
seed = 3

[layers."model.layers.{0..1}.*"]
quantize.scheme = "int8"
quantize.sym = false

[layers."*.down_proj"]
quantize.scheme = "none"
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("recipes") / "llama", "llama")


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def test_a_saved_recipe_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        place.mkdir()
    pipeline = 'fuse,quantize{scheme=int4}@"*.down_proj"{scheme=int8 group=64},kv-cache'
    outputs = ("--emit", "gguf{type=auto}", "-o", first / "m.gguf", "--emit", "onnx", "-o", first / "onnx")
    common = ("--no-parity", "--seed", "11", "--save-recipe", first / "run.toml", "--jobs", "1")
    result = irlab_opt(model, "-p", pipeline, *outputs, *common)
    assert result.returncode == 0, result.stderr
    text = (first / "run.toml").read_text()
    for resolved_option in ("sym=none", "indivisible=refuse", "seed = 11", "allow-fallback=false", "sha256:"):
        assert resolved_option in text
    (second / "run.toml").write_text(text.replace("../llama", os.path.relpath(model, second)))
    again = irlab_opt(
        "--recipe", second / "run.toml", "--no-parity", "--jobs", "3", env={**os.environ, "PYTHONHASHSEED": "4"}
    )
    assert again.returncode == 0, again.stderr
    (first / "run.toml").unlink()
    (second / "run.toml").unlink()
    assert contents(first) == contents(second)


def test_options_per_layer_come_from_tables(model: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("{0..1}", "{1..9}"))
    result = irlab_opt(model, "--recipe", tmp_path / "r.toml")
    assert result.returncode == 0, result.stderr
    elements = {line.split()[0]: line.split(" : ")[1] for line in result.stdout.splitlines() if line.startswith("@")}
    assert elements["@model.layers.0.mlp.up_proj.weight"].startswith("q<int4, sym")
    assert elements["@model.layers.1.mlp.up_proj.weight"].startswith("q<int8, asym")
    assert elements["@model.layers.1.mlp.down_proj.weight"].startswith("f32")


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (("pipeline =", "pipline ="), 1, "unknown key 'pipline' (did you mean 'pipeline'?)"),
        ((RECIPE.splitlines()[0], ""), 1, "has no pipeline"),
        (("seed = 3", "sead = 3"), 1, "unknown key 'sead' (did you mean 'seed'?)"),
        (("seed = 3", 'seed = "3"'), 1, "seed takes an integer"),
        (("seed = 3", "seed = "), 1, "is not TOML"),
        (("seed = 3", "[model]\ninptu = 'demo'"), 1, "unknown key 'model.inptu' (did you mean 'input'?)"),
        (('[layers."*.down_proj"]', "[[layers.x]]"), 1, "is not a table"),
        (("seed = 3", "emit = 3"), 1, "write [[emit]]"),
        (("quantize.sym", "quantise.sym"), 2, "options of 'quantise' are given for layers, and the pipeline has no"),
        (("quantize.sym", "quantize.symm"), 2, "did you mean 'sym'"),
        (("quantize.sym = false", "quantize.exclude = ['a']"), 2, "is one for all layers"),
        (('quantize.scheme = "none"', "quantize = 3"), 1, "is not a table"),
        (("quantize.sym = false", "quantize.sym.x = 3"), 1, "is a table"),
        (("scheme=int4", "scheme=int9"), 2, "int4"),
        (("layers.{0..1}", "leyers.{0..1}"), 1, "matches nothing"),
        (("layers.{0..1}", "layers.{1..0}"), 2, "empty or too long"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, change: tuple[str, str], status: int, message: str) -> None:
    assert change[0] in RECIPE
    (tmp_path / "r.toml").write_text(RECIPE.replace(*change))
    assert message in fails(status, "-", "--recipe", tmp_path / "r.toml", stdin=SMALL)


def test_another_model_is_refused(tmp_path: Path) -> None:
    def run(fingerprint: str) -> tuple[object, ...]:
        write_recipe(RunRecipe(pipeline="cse", model=Model("m.ir", "", fingerprint)), tmp_path / "r.toml")
        return "-", "--recipe", tmp_path / "r.toml"

    line = fails(1, *run("sha256:0"), stdin=SMALL)
    assert "is not the model that" in line and "remove the fingerprint" in line
    assert irlab_opt(*run(model_fingerprint(irlab.parse(SMALL))), stdin=SMALL).returncode == 0


def test_fingerprints_tell_trainings_apart_and_not_places(tmp_path: Path) -> None:
    one = irlab.parse(SMALL)
    assert model_fingerprint(one) == model_fingerprint(irlab.parse(SMALL))
    assert model_fingerprint(one) != model_fingerprint(irlab.parse(SMALL.replace("random()", "random(seed=1)")))
    assert model_fingerprint(one) != model_fingerprint(irlab.parse(SMALL.replace("f32(1.0)", "f32(2.0)")))
    missing = SMALL.replace("random()", 'file("gone.safetensors", "w")')
    assert model_fingerprint(irlab.parse(missing)).startswith("sha256:")


def test_one_number_of_one_row_makes_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = irlab.load("demo"), irlab.load("demo")
    name = "model.layers.1.mlp.up_proj.weight"
    symbol = other.weights[name]
    values = np.array(symbol.recipe.read())
    values[7, 3] += np.float32(1)
    replace_weights(other.graph, {name: WeightSymbol(name, Array(symbol.type, values))})
    assert model_fingerprint(one) != model_fingerprint(other)
    # Of a large model a few rows are read.
    monkeypatch.setattr("irlab.model_fingerprint.SMALL_BYTES", 0)
    assert model_fingerprint(one) == model_fingerprint(other)


def test_a_changed_calibration_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time.")
    digest = hashlib.sha256(b"Once upon a time.").hexdigest()
    (tmp_path / "r.toml").write_text(f'pipeline = "cse"\n[calibration]\ntext = "text.txt"\nsha256 = "{digest}"\n')
    assert irlab_opt("-", "--recipe", tmp_path / "r.toml", stdin=SMALL).returncode == 0
    (tmp_path / "text.txt").write_text("Once upon a  time.")
    assert "text.txt is not the one" in fails(1, "-", "--recipe", tmp_path / "r.toml", stdin=SMALL)
    (tmp_path / "text.txt").unlink()
    assert "No such file" in fails(1, "-", "--recipe", tmp_path / "r.toml", stdin=SMALL)


def test_the_command_line_comes_last(tmp_path: Path) -> None:
    (tmp_path / "in.ir").write_text(SMALL)
    text = 'pipeline = "canonicalize"\n[model]\ninput = "in.ir"\n[[emit]]\ntarget = "ir"\noutput = "out.ir"\n'
    (tmp_path / "r.toml").write_text(text)
    assert irlab_opt("--recipe", tmp_path / "r.toml", cwd="/").returncode == 0
    assert "prim.mul" not in (tmp_path / "out.ir").read_text()
    assert "--force" in fails(1, "--recipe", tmp_path / "r.toml")
    other = SMALL.replace('"small"', '"other"')
    assert irlab_opt("-", "--recipe", tmp_path / "r.toml", "-o", tmp_path / "b.ir", stdin=other).returncode == 0
    assert 'module "other"' in (tmp_path / "b.ir").read_text()
    assert "both say what to run" in fails(2, "-", "--recipe", tmp_path / "r.toml", "-p", "cse", stdin=SMALL)


def test_a_recipe_runs_no_code_by_itself(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "r.toml").write_text('pipeline = "cse"\nload = ["evil.py"]\n')
    assert "was made with --load evil.py" in fails(2, "-", "--recipe", tmp_path / "r.toml", stdin=SMALL)


@pytest.mark.parametrize(
    "pipeline",
    [
        "",
        'fuse,quantize{exclude="a b,c"}',
        'fuse,quantize@"model.layers.{0..3}"{scheme=int8 group=64}@lm_head{sym=false}',
        "repeat{n=2}(canonicalize,quantize@a{group=64},cse),kv-cache",
        "quantize@a{group=64},quantize@b{group=128},cast{dtype=bf16}",
    ],
)
def test_written_recipes_read_back(pipeline: str, tmp_path: Path) -> None:
    passes = build_pipeline(pipeline)
    text, layers = resolved(passes)
    write_recipe(RunRecipe(pipeline=text, seed=0, layers=layers, targets=("gguf",)), tmp_path / "r.toml")
    again = read_recipe(tmp_path / "r.toml")
    assert [str(step) for step in again.passes()] == [str(step) for step in passes]
    assert again.targets == ("gguf",) and again.seed == 0


def test_names_that_are_no_paths_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "model").mkdir()
    recipe = RunRecipe(path=tmp_path / "sub" / "r.toml")
    for name in ("demo", "HuggingFaceTB/SmolLM2-135M", "python:pkg.mod:name"):
        assert relative(name, recipe.path) == name and recipe.resolve(name) == name
    assert relative("model", recipe.path) == "../model"
    (tmp_path / "sub").mkdir()
    assert Path(recipe.resolve("../model")).samefile(tmp_path / "model")


@pytest.mark.slow
def test_a_calibrated_recipe_gives_the_same_bytes_without_the_cache(tmp_path: Path) -> None:
    words = ["the little bird", "saw a red ball", "and the dog ran to it.", "Then", "they went home", "to eat", "again"]
    (tmp_path / "text.txt").write_text(" ".join(words[i * i % len(words)] for i in range(4000)))
    outputs = []
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        run: tuple[object, ...] = ("--recipe", tmp_path / "a" / "run.toml", "--emit", "gguf", "-o", place / "m.gguf")
        if not outputs:
            pipeline = 'fuse,quantize{method=gptq}@"model.layers.0.*"{scheme=int8},kv-cache'
            calibration = ("--calibration", tmp_path / "text.txt", "--calibration-tokens", "1024")
            run = ("demo", "-p", pipeline, *calibration, *run[2:], "--save-recipe", place / "run.toml")
        result = irlab_opt(*run, "--no-parity", env={**os.environ, "IRLAB_CACHE": str(place / "cache")})
        assert result.returncode == 0, result.stderr
        outputs.append((place / "m.gguf").read_bytes())
    assert outputs[0] == outputs[1]
    (tmp_path / "text.txt").write_text("another text")
    assert "text.txt is not the one" in fails(1, "--recipe", tmp_path / "a" / "run.toml")


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"[" * 100_000, b"a" * (5 << 20), b"x = 1"):
        (tmp_path / "r.toml").write_bytes(content)
        with pytest.raises(InputError):
            read_recipe(tmp_path / "r.toml")
    with pytest.raises(IrlabError, match=r"gone\.toml"):
        read_recipe(tmp_path / "gone.toml")
