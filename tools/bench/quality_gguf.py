"""GGUF files, ours against those of llama.cpp's own quantiser: the same types, the same bytes, the same data.

Ours: `quantize{mix=TYPE method=gptq}`, then `--emit gguf`; by the method `mixed-precision` no more bytes than the
peer's, but types of our own choice. The peer: `llama_model_quantize` on the f32 file of the same
weights, with an importance matrix from the same calibration text, as llama-imatrix makes it: the mean square of every
input of the matrices in the layers, and of the output where it has a tensor of its own.

Both files are read by gguf-py, and the decoded weights take the place of the original's in our interpreter, so that
nothing but the weights differs (llama.cpp rounds activations too). `in_llama_cpp` has llama.cpp run the files instead.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import llama_quantizer
import numpy as np
from quality_rows import Row
from quality_subjects import CausalModel

import irlab
from irlab import Context, Module
from irlab.analysis import InputStatistics
from irlab.backends.gguf import GGUF
from irlab.backends.gguf.anatomy import dissect
from irlab.backends.gguf.mixes import file_type
from irlab.backends.gguf.names import named_weights
from irlab.collect import collect
from irlab.quality import runtime_quality
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol

PEER = "llama.cpp's quantiser with its imatrix"
MIXED = "mixed-precision"


def gguf_rows(
    subject: CausalModel, kinds: Sequence[str], methods: Sequence[str], folder: Path, in_llama_cpp: bool
) -> Iterator[Row]:
    """Each file type by each method. Raises LookupError where the quantiser cannot be had."""
    bench = _Files(subject, folder, in_llama_cpp)
    for kind in kinds:
        peer = bench.peer(kind)
        peer_loss = bench.loss(peer)
        for method in methods:
            out = folder / f"{kind}-{method}.gguf"
            if method == MIXED:
                new, seconds = subject.run(f"{MIXED}{{size={peer.stat().st_size}}}", "gguf")
                irlab.emit(new, "gguf", out, parity=False)
            else:
                new, seconds = subject.run(f"quantize{{mix={kind} method={method} indivisible=fallback}}")
                irlab.emit(new, f"gguf{{type={kind} allow-fallback=true}}", out, parity=False)
            yield Row(
                f"{subject.name} {kind} {method}",
                subject.metric,
                bench.loss(out),
                PEER,
                peer_loss,
                out.stat().st_size,
                peer.stat().st_size,
                seconds,
            )
            out.unlink()
        peer.unlink()


class _Files:
    """The peer's files of one model, and what files lose."""

    def __init__(self, subject: CausalModel, folder: Path, in_llama_cpp: bool) -> None:
        self.subject, self.folder, self.in_llama_cpp = subject, folder, in_llama_cpp
        self.quantizer = llama_quantizer.library_folder()
        self.source, self.importances = folder / "f32.gguf", folder / "imatrix.npz"
        irlab.emit(subject.module, "gguf{type=f32}", self.source, parity=False)
        np.savez(self.importances, **self._importances())
        # A copy in the names and forms of the file computes the same.
        self.plain = GGUF(type="f32").legalise(subject.module.clone(), Context())

    def _importances(self) -> dict[str, np.ndarray]:
        """f32[in] by tensor name."""
        module = self.subject.module
        ctx = Context(calibration=self.subject.sample, cache_dir=self.subject.cache)
        names = {value.op.symbol.name: name for name, value in named_weights(dissect(module))}  # type: ignore[union-attr]
        found = collect(InputStatistics, module, ctx)
        wanted = {names[weight]: weight for weight in found if names[weight].startswith(("blk.", "output."))}
        return {name: found[weight].mean_square.astype(np.float32) for name, weight in wanted.items()}

    def peer(self, kind: str) -> Path:
        """The file that llama.cpp makes of the original."""
        out = self.folder / f"{kind}-peer.gguf"
        command = llama_quantizer.command(self.quantizer, self.source, out, file_type(kind).id, self.importances)
        subprocess.run(command, check=True, capture_output=True)
        return out

    def loss(self, file: Path) -> float:
        """What the weights in `file` lose, or the file as llama.cpp runs it."""
        if not self.in_llama_cpp:
            return self.subject.loss(self.decoded(file))
        batches, module = self.subject.batches, self.subject.module
        found = runtime_quality(GGUF().runtime(), file, batches, Context(), module).kl
        assert found is not None
        return found

    def decoded(self, file: Path) -> Module:
        """The original with the weights that `file` holds, read by gguf-py."""
        new = self.plain.clone()
        symbols = {}
        for tensor in gguf.GGUFReader(file).tensors:
            if tensor.name in new.weights:
                kind = new.weights[tensor.name].type
                values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
                shape = tuple(int(size) for size in reversed(tensor.shape))
                symbols[tensor.name] = WeightSymbol(tensor.name, Array(kind, values.reshape(shape)))
        replace_weights(new.graph, symbols)
        return new
