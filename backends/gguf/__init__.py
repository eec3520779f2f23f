"""The GGUF backend: files for llama.cpp."""
