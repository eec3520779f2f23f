"""The pass that turns hidden features by an orthogonal matrix, so that no channel stands out when weights are rounded.

rotate.py  the pass     stream.py  who reads and writes the turned features     folds.py  how weights take it in
"""

from irlab.passes.rotate.rotate import Rotate

__all__ = ["Rotate"]
