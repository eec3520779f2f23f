"""The passes that store weights in fewer bits, and round activations.

quantize.py   the pass: which encoding for which weight     selection.py  which weights may be encoded, how exchanged
gptq.py       rounding with compensation of errors          awq.py        scaling channels first, folded in by folds.py
correct.py    the pass: low-rank corrections of the error   smooth.py     the pass: outliers of activations into weights
activations.py the pass: what matrices read, in 8 bits      cache.py      the pass: keys and values in fewer bits
"""

from irlab.passes.quantize.activations import QuantizeActivations
from irlab.passes.quantize.cache import QuantizeCache
from irlab.passes.quantize.correct import Correct
from irlab.passes.quantize.quantize import Quantize
from irlab.passes.quantize.smooth import SmoothQuant

__all__ = ["Correct", "Quantize", "QuantizeActivations", "QuantizeCache", "SmoothQuant"]
