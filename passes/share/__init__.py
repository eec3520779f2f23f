"""The passes that let weights share numbers.

share_weights.py   tables of a few numbers for some rows
"""

from irlab.passes.share.share_weights import ShareWeights

__all__ = ["ShareWeights"]
