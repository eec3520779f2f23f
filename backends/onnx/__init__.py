"""The ONNX backend: directories for ONNX Runtime and onnxruntime-genai, or plain models for any graph.

backend.py   options and steps          legalise.py   what ONNX can say       attention.py  attention, rope, cache
dialect.py   ONNX's compound ops        precision.py  dtypes and encodings    hybrid.py     two forms of a weight
emitter.py   nodes under construction   lowerings/    op by op                sizes.py      symbolic sizes
storage.py   tensors on disk            codes.py      encoded tensors         writer.py     files
genai.py     genai_config.json          runtime.py    running what was made   plan.py       what is held how
"""

from irlab.backends.onnx.backend import ONNX

__all__ = ["ONNX"]
