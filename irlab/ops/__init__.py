"""The op dialects: prim (tensor primitives), nn (LLM-level ops), control (ops with regions), call (opaque ATen)."""
