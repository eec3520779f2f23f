"""How do vLLM, TensorRT-LLM and transformers lay out encoded weights in a Hugging Face checkpoint?

One class for each layout, which both ways go through: `--emit hf{layout=gptq}` writes by it, and a checkpoint that says
it is quantised so is lifted by it, to the same codes.
"""

from .activations import Rounded, round_inputs, take_roundings
from .awq import AWQ
from .base import Activation, Form, Layout, Names, Scheme, activation_of
from .compressed_tensors import CompressedTensors
from .gptq import GPTQ
from .modelopt import ModelOpt
from .reading import QuantizedCheckpoint, quantized_checkpoint
from .recipes import LaidOut, Packing, laid_out

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (CompressedTensors(), GPTQ(), AWQ(), ModelOpt())}

FORMS: dict[str, Form] = {form.name: form for layout in LAYOUTS.values() for form in layout.forms}
"""By the names that IR text knows them by."""

__all__ = [
    "FORMS",
    "LAYOUTS",
    "Activation",
    "Form",
    "LaidOut",
    "Layout",
    "Names",
    "Packing",
    "QuantizedCheckpoint",
    "Rounded",
    "Scheme",
    "activation_of",
    "laid_out",
    "quantized_checkpoint",
    "round_inputs",
    "take_roundings",
]
