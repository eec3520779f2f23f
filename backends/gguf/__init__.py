"""The `gguf` backend: decoders as GGUF files for llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from irlab.ir import Module
from irlab.options import Bounds, Bytes
from irlab.passmgr import Context
from irlab.target import Backend, PlanRow, Runtime, Speed, TimedRuntime

if TYPE_CHECKING:
    import numpy as np

    from irlab.backends.gguf.mixes import FileType
    from irlab.backends.gguf.parts import Decoder
    from irlab.backends.gguf.writer import GGUFWriter, ShardsWriter, TensorInfo
    from irlab.encodings import Encoding
    from irlab.ops.nn import ActivationRounding
    from irlab.types import TensorType
    from irlab.weights import Readings, WeightSymbol


@dataclass(frozen=True)
class GGUF(Backend, name="gguf"):
    """A GGUF file that llama.cpp runs.

    `type` is llama.cpp's name for a file type (f32, f16, bf16, q8_0, q4_0, q4_k_m, q6_k ...): weights are quantised to
    it exactly as llama.cpp's own tool would; with `encoder=irlab` by our own search, which loses less and is faster for
    the K types. `auto` stores floats as the module has them. Weights that a pass has encoded keep their codes in
    either case. A type whose blocks do not fit a tensor is refused, unless
    `allow-fallback=true`: then the next larger one is taken, and said. `imatrix`: a file with the importances of
    channels, of llama-imatrix or `--emit imatrix`. `pre` names the pre-tokenizer where it cannot be recognised.
    `split=4G` writes a directory of shards. Low-rank corrections (pass correct) become a LoRA adapter beside the file:
    OUT.lora.gguf.

    Layers may differ in heads and widths, or lack attention or feed-forward blocks, as after pruning: such models are
    written for an architecture of llama.cpp that has such layers (deci; openelm where queries and keys are normalised
    and the head is tied), and `--plan` says so.
    """

    requires = {"fuse": "it finds the parts of a decoder in nn ops"}  # as the base class declares it

    type: str = "auto"
    encoder: Literal["ggml", "irlab"] = "ggml"
    allow_fallback: bool = field(default=False, metadata={"text": "allow-fallback"})
    imatrix: str = ""
    pre: str = ""
    split: Annotated[Bytes, Bounds(1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.type != "auto":
            from irlab.backends.gguf.mixes import file_type

            file_type(self.type)  # refused before any work

    def plan(self, module: Module) -> list[PlanRow]:
        from irlab.backends.gguf.plan import plan

        return plan(module, self)

    def holds(self, encoding: Encoding) -> bool:
        from irlab.backends.gguf.encoding import exact

        return exact(encoding, 256) is not None

    def activation_refusal(self, op: ActivationRounding) -> str:
        from irlab.backends.gguf.anatomy import ROUNDED

        return ROUNDED

    def file_type(self, decoder: Decoder) -> FileType:
        """What `type` stands for in this decoder."""
        from irlab.backends.gguf.mixes import file_type
        from irlab.backends.gguf.weight_types import default_file_type

        return default_file_type(decoder) if self.type == "auto" else file_type(self.type)

    def legalise(self, module: Module, ctx: Context) -> Module:
        from irlab.backends.gguf.legalise import legalise

        return legalise(module, self, ctx)

    def refuse(self, module: Module, out: Path) -> None:
        from irlab.backends.gguf.encoding import EncodeByGGML

        for symbol in _symbols(module):
            if isinstance(symbol.recipe, EncodeByGGML):
                symbol.recipe.require_encodable(symbol.name)

    def is_directory(self, out: Path) -> bool:
        return self.split is not None

    def estimate_bytes(self, module: Module) -> int:
        from irlab.backends.gguf.writer import size_bytes

        return size_bytes(module.metadata["gguf"], [tensor_info(s) for s in (*_symbols(module), *_factors(module))])

    def exact_bytes(self, module: Module) -> int:
        from irlab.backends.gguf import adapter
        from irlab.backends.gguf.writer import shard_bytes, size_bytes

        metadata = module.metadata["gguf"]
        infos, factors = [tensor_info(s) for s in _symbols(module)], [tensor_info(s) for s in _factors(module)]
        beside = size_bytes(adapter.metadata(metadata), factors) if factors else 0
        if self.split is not None:
            return beside + sum(shard_bytes(metadata, infos, self.split))
        return beside + size_bytes(metadata, infos)

    def weight_bytes(self, type: TensorType, module: Module) -> int:
        from irlab.backends.gguf.encoding import exact
        from irlab.backends.gguf.ggml import ggml_type
        from irlab.backends.gguf.writer import TensorInfo, padded
        from irlab.weights import static_shape

        shape = static_shape(type)
        if type.encoding is None:
            kind = ggml_type("F32" if type.rank < 2 or type.dtype.bits > 16 else type.dtype.name.upper())
        else:
            held = exact(type.encoding, shape[-1])
            assert held is not None, f"GGUF does not hold {type.encoding}"
            kind = held.type
        return padded(TensorInfo("", shape, kind).size_bytes)

    def beside(self, module: Module) -> tuple[str, ...]:
        from irlab.backends.gguf.adapter import SUFFIX

        return (SUFFIX,) if _factors(module) else ()

    def write(self, module: Module, out: Path, ctx: Context) -> Readings:
        from irlab.backends.gguf import adapter
        from irlab.backends.gguf.writer import GGUFWriter, ShardsWriter

        metadata, symbols = module.metadata["gguf"], _symbols(module)
        infos = [tensor_info(symbol) for symbol in symbols]
        if self.split is not None:
            yield from _fill(ShardsWriter(out, module.name, metadata, infos, self.split), symbols)
        else:
            yield from _fill(GGUFWriter(out, metadata, infos), symbols)
        for suffix in self.beside(module):
            factors = _factors(module)
            infos = [tensor_info(symbol) for symbol in factors]
            yield from _fill(GGUFWriter(out.with_suffix(suffix), adapter.metadata(metadata), infos), factors)

    def float_tolerance(self, module: Module) -> float | None:
        kinds = {tensor_info(symbol).type.name for symbol in (*_symbols(module), *_factors(module))}
        if kinds <= {"F32"}:
            return 1e-2
        return 5e-2 if kinds <= {"F32", "F16", "BF16"} else None

    def runtime(self) -> Runtime:
        return LlamaCppRuntime()

    def runtime_for(self, module: Module) -> Runtime:
        return LlamaCppRuntime(*self.beside(module))


def _symbols(module: Module) -> list[WeightSymbol]:
    """The tensors of the file, in order; rotary frequencies are metadata, their factors a tensor."""
    from irlab.backends.gguf.adapter import is_factor
    from irlab.backends.gguf.legalise import rope_factor_symbol

    factors = module.metadata["gguf_rope_factors"]
    table = [rope_factor_symbol(factors)] if factors else []
    names = ("token_embd.", "output", "blk.")
    return table + [s for n, s in module.weights.items() if n.startswith(names) and not is_factor(n)]


def _factors(module: Module) -> list[WeightSymbol]:
    """The tensors of the adapter."""
    from irlab.backends.gguf.adapter import is_factor

    return [symbol for name, symbol in module.weights.items() if is_factor(name)]


def tensor_info(symbol: WeightSymbol) -> TensorInfo:
    """Name, shape and GGML type of a legalised weight."""
    from irlab.backends.gguf.encoding import exact
    from irlab.backends.gguf.ggml import ggml_type
    from irlab.backends.gguf.writer import TensorInfo
    from irlab.weights import static_shape

    shape = static_shape(symbol.type)
    encoding = symbol.type.encoding
    if encoding is None:
        return TensorInfo(symbol.name, shape, ggml_type("F32"))
    held = exact(encoding, shape[-1])
    assert held is not None, f"{symbol.name} was not legalised"
    return TensorInfo(symbol.name, shape, held.type)


def stored_rows(symbol: WeightSymbol, start: int, stop: int) -> np.ndarray[Any, Any]:
    """The bytes of rows [start:stop] of a legalised weight, as the file has them."""
    import numpy as np

    from irlab.backends.gguf.encoding import exact
    from irlab.weights import finite_codes, finite_rows, static_shape

    encoding = symbol.type.encoding
    if encoding is None:
        return np.ascontiguousarray(finite_rows(symbol, start, stop)).view(np.uint8)
    held = exact(encoding, static_shape(symbol.type)[-1])
    assert held is not None, f"{symbol.name} was not legalised"
    codes = finite_codes(symbol, start, stop)
    return held.repack({part: rows.reshape(-1, rows.shape[-1]) for part, rows in codes.items()})


def _fill(writer: GGUFWriter | ShardsWriter, symbols: Sequence[WeightSymbol]) -> Readings:
    """Write the tensors of a file, or of several."""
    from irlab.weights import Reading

    with writer as file:
        yield Reading(symbols, stored_rows, lambda chunk: file.write(chunk.symbol.name, chunk.value))


class LlamaCppRuntime(TimedRuntime):
    """llama.cpp, from the xllamacpp wheel, in a child process."""

    name = "llama.cpp"

    def __init__(self, adapter: str = "") -> None:
        """`adapter`: the suffix, in place of the file's own, of a LoRA adapter to run it with."""
        self._adapter = adapter

    def unavailable(self) -> str:
        from irlab.backends.gguf.library import llama_library

        return "" if llama_library() is not None else "llama.cpp is not installed (pip install xllamacpp)"

    def logits(self, out: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        from irlab.backends.gguf.llama_cpp import LlamaCpp

        with LlamaCpp() as llama:
            return [llama.logits(_file(out), prompt, adapter=self._beside(out)) for prompt in prompts]

    def greedy(self, out: Path, prompt: Sequence[int], count: int) -> list[int]:
        from irlab.backends.gguf.llama_cpp import LlamaCpp

        with LlamaCpp() as llama:
            return llama.greedy(_file(out), prompt, count, adapter=self._beside(out))

    def speed(self, out: Path, prompt: int, new: int, *, processor: bool = False) -> Speed:
        from irlab.backends.gguf.llama_cpp import LlamaCpp

        with LlamaCpp(threads=1) if processor else LlamaCpp() as llama:
            rates = llama.speed(
                _file(out),
                prefill=prompt,
                decode=new,
                repeats=1,
                seconds=0.5,
                adapter=self._beside(out),
                processor=processor,
            )
        return Speed(rates["prefill"], rates["decode"])

    def _beside(self, out: Path) -> Path | None:
        return out.with_suffix(self._adapter) if self._adapter else None


def _file(out: Path) -> Path:
    """The file to load: `out`, or the first shard in it."""
    return min(out.glob("*.gguf")) if out.is_dir() else out
