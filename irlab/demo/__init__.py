"""Where the built-in demo model is: a small story-telling Llama, shipped as package data."""

from pathlib import Path


def path() -> Path:
    """The model's Hugging Face directory (config.json, model.safetensors in bf16, tokenizer.json); read-only data."""
    return Path(__file__).parent
