"""The passes that let weights share numbers.

share_weights.py   tables of a few numbers for some rows      hash_weights.py   tables that a hash picks from
tie_layers.py      layers with the same matrices
"""

from irlab.passes.share.hash_weights import HashWeights
from irlab.passes.share.share_weights import ShareWeights
from irlab.passes.share.tie_layers import TieLayers

__all__ = ["HashWeights", "ShareWeights", "TieLayers"]
