"""The pass that sets weights to zero.

sparsify.py   the pass: which weights, by which method       solve.py   masks, and what the weights inside them become
"""

from irlab.passes.sparsify.sparsify import Sparsify

__all__ = ["Sparsify"]
