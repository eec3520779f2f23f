"""The passes that store weights in fewer bits.

quantize.py   the pass: which encoding for which weight     selection.py  which weights may be encoded, how exchanged
gptq.py       rounding with compensation of errors          awq.py        scaling channels first, folded in by folds.py
correct.py    the pass: low-rank corrections of the error
"""

from irlab.passes.quantize.correct import Correct
from irlab.passes.quantize.quantize import Quantize

__all__ = ["Correct", "Quantize"]
