"""Which execution providers can the backend write for, what do they take, and how do we know?

A row says what files for a provider are made of; the emitter follows it (vocabulary.py), `--plan` names the nodes that
the provider would leave to the CPU (placement.py). What a provider's kernels compute stands in tables/ (kernels.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from irlab.backends.onnx.kernels import Kernels, data_operand, kernels, refusal
from irlab.errors import UsageError
from irlab.options import did_you_mean
from irlab.types import DType, f16, f32

Blocks = Literal["nbits", "dequantize", "signed", "decoded"]
"""In which form weights of few bits are stored. nbits: MatMulNBits and GatherBlockQuantized where the provider has
them; dequantize: codes under a DequantizeLinear of blocks; signed: the same, without zero points; decoded:
as floats."""


@dataclass(frozen=True)
class Provider:
    """One execution provider."""

    runtime_name: str
    """What ONNX Runtime calls it."""
    table: str
    """The name of its table of kernels."""
    checked: str
    """How far files for it were run, here."""
    genai_name: str = ""
    """What onnxruntime-genai calls it in provider_options; empty where it is its default, or has no such provider."""
    opset: int = 23
    """23 is the newest whose Attention and RMSNormalization ONNX Runtime's CPU runs well; 25 has no kernels."""
    half: DType = f16
    """What bf16 becomes, which no provider runs everywhere."""
    blocks: Blocks = "nbits"
    rope: Literal["attention", "table", "angles"] = "angles"
    """Where positions are turned: inside GroupQueryAttention; by RotaryEmbedding with rows of a stored table of cos and
    sin; or with angles computed from the positions."""
    max_rank: int = 0
    """Tensors of more axes it does not take; 0 for no limit."""
    static: bool = False
    """Whether every size must be known: `fixed=` gives them."""

    @property
    def kernels(self) -> Kernels:
        return kernels(self.table)

    def takes(self, op: str, dtype: DType) -> bool:
        """Whether a kernel computes `op` ("Gelu", "ms:MatMulNBits") of the provider's opset on `dtype`."""
        domain, _, name = op.rpartition(":")
        domain = "com.microsoft" if domain else ""
        since = since_version(name, domain, self.opset)
        at = data_operand(name)
        operands = {} if at is None else {at: dtype.name}
        return since > 0 and not refusal(self.kernels, name, domain, since, operands)


PROVIDERS: Final[dict[str, Provider]] = {
    "cpu": Provider("CPUExecutionProvider", "cpu", "run", half=f32, rope="attention"),
    "wasm": Provider(
        # MatMulNBits has no fast kernel in WebAssembly: decoded once, when they are loaded, weights are read faster.
        "CPUExecutionProvider", "cpu", "run in Node and Chromium", half=f32, blocks="dequantize", rope="attention"
    ),
    "cuda": Provider(
        "CUDAExecutionProvider", "cuda", "not run on hardware here: kernel tables and the CPU", "cuda", rope="attention"
    ),
    "directml": Provider(
        "DmlExecutionProvider", "directml", "not run on hardware here: kernel tables and the CPU", "dml",
        opset=21, rope="table",
    ),
    "webgpu": Provider(
        "WebGpuExecutionProvider", "webgpu", "run in Chromium on a software adapter", "webgpu", half=f32, rope="table"
    ),
    "coreml": Provider(
        "CoreMLExecutionProvider", "coreml", "not run on hardware here: ONNX Runtime's rules and the CPU", "",
        half=f32, blocks="decoded", rope="table", max_rank=5, static=True,
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider", "openvino", "run by OpenVINO on the CPU", "openvino", half=f32, blocks="dequantize"
    ),
    "qnn": Provider(
        "QNNExecutionProvider", "qnn", "run in Qualcomm's emulator of a Hexagon processor", "qnn",
        half=f32, rope="table", static=True,
    ),
    "tensorrt": Provider(
        "NvTensorRTRTXExecutionProvider", "tensorrt", "parsed and built by TensorRT; run on the CPU", "NvTensorRtRtx",
        blocks="signed",
    ),
}  # fmt: skip
"""By the name that `ep=` takes."""


def require_provider(ep: str) -> Provider:
    """The provider called `ep`; UsageError where there is none."""
    found = PROVIDERS.get(ep)
    if found is None:
        raise UsageError(f"the execution provider '{ep}' is unknown", f"ep={'|'.join(PROVIDERS)}{_guess(ep)}")
    return found


def _guess(ep: str) -> str:
    guess = did_you_mean(ep, PROVIDERS)
    return f"; {guess}" if guess else ""


def since_version(op_type: str, domain: str, opset: int) -> int:
    """The version of an op's definition that `opset` uses; 1 for ops of ONNX Runtime, 0 for ops that are not there."""
    if domain or op_type == "SimplifiedLayerNormalization":
        return 1
    import onnx

    try:
        return int(onnx.defs.get_schema(op_type, max_inclusive_version=opset).since_version)
    except onnx.defs.SchemaError:
        return 0
