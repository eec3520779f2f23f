"""How do vLLM, TensorRT-LLM and transformers lay out encoded weights in a Hugging Face checkpoint?

One class for each layout, which both ways go through: `--emit hf{layout=gptq}` writes by it, and a checkpoint that says
it is quantised so is lifted by it, to the same codes.
"""

from .awq import AWQ
from .base import Layout, Names
from .compressed_tensors import CompressedTensors
from .gptq import GPTQ
from .modelopt import ModelOpt
from .reading import QuantizedCheckpoint, quantized_checkpoint
from .recipes import LaidOut, Packing, laid_out

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (CompressedTensors(), GPTQ(), AWQ(), ModelOpt())}

__all__ = [
    "LAYOUTS",
    "LaidOut",
    "Layout",
    "Names",
    "Packing",
    "QuantizedCheckpoint",
    "laid_out",
    "quantized_checkpoint",
]
