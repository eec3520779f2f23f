"""The passes that store weights in fewer bits.

selection.py  which weights may be encoded, and how they are exchanged    nearest.py  quantize: rounding to nearest
"""

from irlab.passes.quantize.nearest import Quantize

__all__ = ["Quantize"]
