"""What lifts models into the IR: `torch` (any nn.Module) and `hf` (Hugging Face directories and hub ids)."""
