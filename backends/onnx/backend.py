"""The ONNX backend: its options, and the three steps legalise, write, run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from irlab.encodings import Encoding
from irlab.errors import LegalityError, UsageError
from irlab.ir import Module
from irlab.options import Bounds
from irlab.passmgr import Context
from irlab.target import Backend, PlanRow, Runtime
from irlab.types import TensorType, f16, f32

if TYPE_CHECKING:
    from irlab.backends.onnx.emitter import Emitter
    from irlab.backends.onnx.legalise import Settings
    from irlab.backends.onnx.providers import Provider
    from irlab.weights import Readings


@dataclass(frozen=True)
class ONNX(Backend, name="onnx"):
    """Directories for onnxruntime-genai and ONNX Runtime, or plain ONNX models of any graph.

    Writes model.onnx, model.onnx.data and, for decoders with a cache, genai_config.json and the tokenizer's files.

    `ep`: the execution provider to write for: cpu, wasm, cuda, directml, webgpu, coreml, openvino, qnn or tensorrt; its
    table says which ops, types and forms of weights it takes, and `--plan` which nodes would fall back to the CPU.
    `fixed`: numbers for symbolic sizes, as batch:1,seq:64, for providers that want every shape known. `precision`: auto
    is as the IR is, with bf16 as f16 or f32, whichever the provider is better at; fp32 and fp16 are of numbers that are
    not encoded; int4 and int8 run the quantize pass on what is not encoded yet, with groups of `group`. `layout`: genai
    is for onnxruntime-genai and needs kv-cache, plain has inputs and outputs as the graph has them, auto is genai for
    decoders with a cache. `profile`: fast uses what the provider has of com.microsoft GroupQueryAttention (padding is
    last in a row), MatMulNBits and GatherBlockQuantized; portable ONNX's own ops only. `hybrid` keeps two forms of each
    encoded matrix: 8 bits (weights and activations) for prompts, the other for tokens; with profile=fast.
    `accuracy_level` is of 4- and 8-bit products: 4 rounds activations to 8 bits, 0 does not (portable: in genai only).
    `max_length`: positions that rope tables are stored for and genai may use; 0 for max_position_embeddings.
    """

    writes_directory = True

    ep: str = "cpu"
    precision: Literal["auto", "fp32", "fp16", "int8", "int4"] = "auto"
    layout: Literal["auto", "genai", "plain"] = "auto"
    profile: Literal["fast", "portable"] = "fast"
    hybrid: bool = False
    group: Annotated[int, Bounds(-1)] = 32
    accuracy_level: Annotated[int, Bounds(0, 4)] = 4
    max_length: Annotated[int, Bounds(0)] = 0
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        from irlab.registry import pass_class

        pass_class("specialize").configure({"sizes": ",".join(self.fixed)})
        if self.hybrid and self.profile == "portable":
            # ONNX Runtime 1.32 does not load a blocked DequantizeLinear in a branch of If.
            raise UsageError("onnx{hybrid=true} needs profile=fast", "leave one of the two out")
        if not self.provider.takes("ms:DynamicQuantizeMatMul", f32) and self.hybrid:
            raise UsageError(
                f"onnx{{hybrid=true}} needs DynamicQuantizeMatMul, which {self.ep} has not", "leave it out"
            )

    @property
    def provider(self) -> Provider:
        """The row of the table of providers; UsageError where `ep` is none of them."""
        from irlab.backends.onnx.providers import require_provider

        return require_provider(self.ep)

    def plan(self, module: Module) -> list[PlanRow]:
        from irlab.backends.onnx.plan import plan

        return plan(module, self)

    def holds(self, encoding: Encoding) -> bool:
        from irlab.backends.onnx.forms import form
        from irlab.backends.onnx.vocabulary import Vocabulary

        return form(encoding, Vocabulary(self.provider, self.profile == "portable").blocks).holding == "native"

    def legalise(self, module: Module, ctx: Context) -> Module:
        from irlab.backends.onnx import genai
        from irlab.backends.onnx.legalise import legalise

        if self.layout == "genai":
            genai.require_layout(module.graph)
        legal = legalise(module, self.settings(module), ctx)
        if self.layout == "genai":
            genai.require_layout(legal.graph)  # sizes may have been fixed
        if self.writes_genai(legal) and genai.caches_differ(legal.graph):
            legal.metadata.setdefault("notes", []).append(genai.DIFFERENT_CACHES)
        return legal

    def settings(self, module: Module) -> Settings:
        """What legalisation needs of these options, for this module."""
        from irlab.backends.onnx import genai
        from irlab.backends.onnx.legalise import Settings

        length = genai.context_length(module, self.max_length)
        portable = self.profile == "portable"
        return Settings(
            self.provider,
            portable,
            self.precision,
            self.hybrid,
            self.group,
            length,
            self.fixed,
            self.accuracy_level,
        )

    def refuse(self, module: Module, out: Path) -> None:
        from irlab.backends.onnx.writer import emit

        emit(module.clone(), self.emitter(module), values=False)

    def estimate_bytes(self, module: Module) -> int:
        weights = sum(symbol.size_bytes for symbol in module.weights.values())
        return weights + weights // 10 + (64 << 10) * (1 + len(module.weights))

    def exact_bytes(self, module: Module) -> int:
        from irlab.backends.onnx import genai
        from irlab.backends.onnx.writer import emit

        copy = module.clone()
        model, _, data_bytes = emit(copy, self.emitter(copy))
        size = int(model.ByteSize()) + data_bytes
        if self.writes_genai(module):
            size += genai.companion_bytes(module, self.max_length, self.accuracy_level, self.provider.genai_name)
        return size

    def weight_bytes(self, type: TensorType, module: Module) -> int:
        from irlab.backends.onnx.forms import part_bytes
        from irlab.backends.onnx.vocabulary import Vocabulary
        from irlab.backends.onnx.writer import placed_bytes
        from irlab.precision import compute_dtype

        half = self.precision == "fp16" or (self.precision != "fp32" and compute_dtype(module) is f16)
        blocks = Vocabulary(self.provider, self.profile == "portable").blocks
        return sum(map(placed_bytes, part_bytes(type, blocks, f16 if half else f32)))

    def write(self, module: Module, out: Path, ctx: Context) -> Readings:
        from irlab.backends.onnx import genai
        from irlab.backends.onnx.writer import write_model

        yield from write_model(module, self.emitter(module), out)
        if self.writes_genai(module):
            genai.write_companions(module, out, self.max_length, self.accuracy_level, self.provider.genai_name)

    def emitter(self, module: Module) -> Emitter:
        """A fresh emitter for a legalised module."""
        from irlab.backends.onnx.emitter import Emitter
        from irlab.backends.onnx.lowerings import lowerings

        vocabulary = self.settings(module).vocabulary(module)
        return Emitter(lowerings(vocabulary), self.accuracy_level, vocabulary)

    def writes_genai(self, module: Module) -> bool:
        """Whether the layout is that of onnxruntime-genai."""
        from irlab.backends.onnx import genai

        if self.layout == "auto" and genai.is_cached_decoder(module.graph):
            try:
                genai.require_layout(module.graph)
            except LegalityError:
                return False
            return True
        return self.layout == "genai"

    def float_tolerance(self, module: Module) -> float | None:
        if any(symbol.type.encoding is not None for symbol in module.weights.values()):
            return None
        from irlab.precision import compute_dtype

        return 1e-2 if compute_dtype(module) is f32 else 5e-2

    def runtime(self) -> Runtime:
        from irlab.backends.onnx.runtime import OnnxRuntime

        return OnnxRuntime(self.ep, fixed=bool(self.fixed))
