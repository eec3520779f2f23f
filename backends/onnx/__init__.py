"""The ONNX backend: directories for ONNX Runtime and onnxruntime-genai, or plain models for any graph."""
