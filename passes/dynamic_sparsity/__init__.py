"""The pass that leaves small activations out while the model runs.

dynamic_sparsity.py   the pass: which inputs, how many of them      magnitudes.py   how large inputs are, and weigh
"""

from irlab.passes.dynamic_sparsity.dynamic_sparsity import DynamicSparsity

__all__ = ["DynamicSparsity"]
