"""The backend as a whole: what it writes, what it refuses, how its builder fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_llama import Llama
from trt_networks import legal

import irlab
from irlab import GraphBuilder
from irlab.backends.tensorrt import TensorRT, library
from irlab.dims import symbol
from irlab.encodings import IntegerEncoding
from irlab.errors import CheckError, InputError, IrlabError, LegalityError, UsageError
from irlab.ir import Module
from irlab.ops import prim
from irlab.ops.call import call
from irlab.types import f16, tensor
from irlab.weights import Reading, read_alone


def test_a_directory_is_whole(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,kv-cache")
    module.metadata["licence"] = "mit"
    done = irlab.emit(module, "tensorrt", tmp_path / "out", precision="fp16", targets="sm89")
    assert done.parity.runtime == "the network, evaluated layer by layer (engine not run)"
    assert done.parity.greedy_equal and done.parity.max_abs_logit_diff < 5e-2 and not done.parity.failure
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.engine", "engine.json", "network.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.startswith(".")]
    stated = json.loads((tmp_path / "out" / "engine.json").read_text())
    assert stated["compute_capabilities"] == ["sm89"] and stated["precision"] == "f16"
    assert [profile["name"] for profile in stated["profiles"]] == ["prefill", "decode"]
    assert stated["cache_buffers"]["past_key_values.0.key"] == "present.0.key"
    assert stated["builder"].startswith(library.load().__name__) and stated["licence"] == "mit"
    assert stated["precision_of_layers"]["model.layers.0.self_attn/attention.attention_output"] == "half"
    described = json.loads((tmp_path / "out" / "network.json").read_text())
    attention = next(row for row in described["layers"] if row["kind"] == "ATTENTION_OUTPUT")
    assert attention["attributes"]["norm_op"] == "SOFTMAX"
    assert any("model.layers.0" in row.get("from", "") for row in described["layers"])


def test_parity_notices_another_network(tmp_path: Path) -> None:
    """What is evaluated must be what was built: network.json of another module is refused."""
    from irlab.emission import write_alone
    from irlab.passmgr import Context

    backend = TensorRT(max_past=31, targets=("sm80",))
    one, other = (backend.legalise(Llama(eps=eps).module(), Context()) for eps in (1e-5, 1e-3))
    write_alone(backend, one, tmp_path, Context())
    assert backend.runtime_for(one).greedy(tmp_path, [3, 4], 2)
    with pytest.raises(CheckError, match="another network"):
        backend.runtime_for(other).greedy(tmp_path, [3, 4], 2)


def one_op(build: Any, element: str = "f32") -> Module:
    b = GraphBuilder()
    x = b.input("x", element, ("batch", 4))
    b.output(y=b.add(build(x), "model.head"))
    return b.module()


REFUSED: dict[str, tuple[Any, dict[str, Any], type[IrlabError], str]] = {
    "dtype": (
        lambda: one_op(lambda x: prim.add(x, x), "f64"), {}, LegalityError, r"f64.*cast\{dtype=f32\} makes it legal",
    ),
    "aten op": (
        lambda: one_op(lambda x: call((x,), "aten.nonzero.default", ("%0",), (tensor("i64", (symbol("u0"), 2)),))[0]),
        {}, LegalityError, r"model.head: TensorRT has no layer for the ATen op aten.nonzero.default",
    ),
    "bits of integers": (
        lambda: one_op(lambda x: prim.and_(x, x), "i64"), {}, LegalityError, "not the bits of integers",
    ),
    "a size nobody states": (
        lambda: Llama_with_frames(), {}, LegalityError, r"nothing says how large 'frames'.*sizes=frames:1:16:64",
    ),
    "an asymmetric int8": (
        lambda: Llama(encoding=IntegerEncoding(8, False, 32)).module(), {}, LegalityError, "no zero points",
    ),
    "opt above max": (
        lambda: Llama().module(), {"opt_seq": 64, "max_seq": 32}, UsageError, "contradict each other",
    ),
    "opt above the context": (
        lambda: Llama().module(), {"opt_past": 500}, UsageError, "opt-past=500 and max-past=127 contradict",
    ),
    "sizes": (lambda: Llama().module(), {"sizes": ("frames:9:4:16",)}, UsageError, "9 <= 4 <= 16 does not hold"),
    "sizes of nothing": (
        lambda: Llama().module(), {"sizes": ("bach:1:2:4",)}, UsageError, "no input has a size 'bach'.*mean 'batch'",
    ),
    "sizes of the past": (lambda: Llama().module(), {"sizes": ("past:1:2:4",)}, UsageError, "max-past and opt-past"),
    "a capability": (lambda: Llama().module(), {"targets": ("sm90",)}, UsageError, "cannot build for 'sm90'"),
    "bf16 on sm75": (
        lambda: Llama().module(), {"targets": ("sm75",), "precision": "bf16"}, LegalityError, "sm75.*cannot hold bf16",
    ),
}  # fmt: skip


def Llama_with_frames() -> Module:
    b = GraphBuilder()
    b.output(y=prim.abs(b.input("x", "f32", ("frames", 4))))
    return b.module()


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    make, options, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        legal(make(), **options)


def test_without_a_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PACKAGES", ("no_such_package",))
    with pytest.raises(InputError, match=r"no TensorRT builder is installed: pip install 'irlab\[tensorrt\]'"):
        TensorRT().refuse(legal(Llama().module()), Path("out"))


def alone(steps: Iterable[Reading]) -> None:
    """Let a writer have what it wants to read."""
    for reading in steps:
        read_alone(reading)


def test_the_builder_fails_with_its_words(tmp_path: Path) -> None:
    """A capability that cannot hold a type, forced past our own table: the builder's message names the layer."""
    from irlab.backends.tensorrt import process
    from irlab.passmgr import Context

    backend = TensorRT(max_past=31)
    module = legal(Llama(dtype="bf16").module(), max_past=31)
    with pytest.raises(InputError, match="TensorRT's builder failed: "):
        alone(process.build(module, backend.limits(module), ("sm75",), tmp_path, Context()))


def test_a_layer_that_the_builder_names_is_traced_to_the_model() -> None:
    from trt_networks import network_of

    from irlab.backends.tensorrt.description import layers
    from irlab.backends.tensorrt.network import blamed

    network = network_of(legal(Llama().module(), max_past=31), max_past=31)
    layer = next(layer for layer in layers(network.definition) if "layers.1" in layer.metadata)
    told = blamed(network, ["Error Code 10: Could not find any implementation for node " + layer.name])
    assert told == f"the layer {layer.name} comes from {layer.metadata}" and "model.layers.1" in told
    assert blamed(network, ["out of memory"]) == ""
    network.close()


def test_a_builder_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from irlab.backends.tensorrt import process
    from irlab.passmgr import Context

    (tmp_path / "dying_worker.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process, "WORKER", "dying_worker")
    module = legal(Llama().module(), max_past=31)
    with pytest.raises(InputError, match="TensorRT's builder died of SIGABRT"):
        alone(process.build(module, TensorRT(max_past=31).limits(module), ("sm80",), tmp_path, Context()))


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    from trt_networks import network_of

    from irlab.backends.tensorrt.network import build_to

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    network = network_of(legal(Llama().module(), max_past=31), max_past=31)
    with pytest.raises(OSError, match="No space left"):
        build_to(network, ("sm80",), Path("/dev/full"))
    network.close()


def test_the_plan_reads_no_weight(tmp_path: Path) -> None:
    module = Llama(softcap=2.0, encoding=IntegerEncoding(4, True, 32, f16)).module()
    rows = {row.what: row for row in TensorRT(targets=("sm80",)).plan(module)}
    assert rows["nn.attention x 2"].holding == "emulated"
    assert rows["nn.kv_update x 4"].note == "a KVCacheUpdate of a buffer, in place"
    assert rows["q<int4, sym, group=32, scale=f16>"].holding == "native"
    assert rows["targets"].note == "sm80" and "max-past=127" in rows["sizes"].note


def test_large_weights_go_through_a_file(tmp_path: Path) -> None:
    """A weight above the limit is mapped from the scratch file, holds the same numbers, and the file goes."""
    from irlab.backends.tensorrt.constants import ConstantStore

    module = Llama(vocab=2000).module()
    symbol_ = module.weights["embed.weight"]
    store = ConstantStore(tmp_path, 2)
    array = store.plain(symbol_)
    np.testing.assert_array_equal(array, symbol_.recipe.read())
    assert shutil.disk_usage(tmp_path).free and store._maps
    del array
    store.close()
    assert not list(tmp_path.iterdir())


def test_the_builder_reads_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is read where all targets read it: what the child process gets does not name it."""
    from irlab.backends.tensorrt import process

    texts: list[str] = []

    class Watched(process.Child):
        def ask(self, request: Any, note: Any = None) -> dict[str, Any]:
            texts.append((Path(request["module"]) / "module.ir").read_text("utf-8"))
            raise InputError("seen")

    monkeypatch.setattr(process, "Child", Watched)
    with pytest.raises(InputError, match="seen"):
        irlab.emit(irlab.run(irlab.load("demo"), "fuse,kv-cache"), "tensorrt", tmp_path / "out", targets="sm89")
    (text,) = texts
    assert text.count("file(") == text.count('file("weights.safetensors"') > 30
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_in_bf16_passes_the_gate(tmp_path: Path) -> None:
    """Logits of 17 lie 0.125 apart in bf16: rounding alone makes a difference of 0.11."""
    module = irlab.run(irlab.load("demo"), "fuse,kv-cache")
    parity = irlab.emit(module, "tensorrt", tmp_path / "out", parity=True, targets="sm89").parity
    assert parity.greedy_equal and parity.kl < 1e-3
