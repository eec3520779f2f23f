"""The pass that makes two thin matrices of a large one.

low_rank.py   the pass: which matrices, by which method      ranks.py   how many ranks each of them gets
factors.py    what the factors are
"""

from irlab.passes.low_rank.low_rank import LowRank

__all__ = ["LowRank"]
