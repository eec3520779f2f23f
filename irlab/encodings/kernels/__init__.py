"""Which scales lose least, where NumPy would be slow? Searches that numba compiles.

    integers.py    code_sums: what the codes of integers under given scales lose (search.py)
    lines.py       line: groups with a scale and an offset of their own
    multiples.py   multiple, nearest_scale: groups with a scale of their own, or the best of some given ones
    affine.py      affine: super-blocks of scales and offsets (Q2_K, Q4_K, Q5_K)
    signed.py      signed: super-blocks of signed scales (Q3_K, Q6_K, IQ4_XS)
    rows.py        k_means, nearest_in_rows: tables of rows
    compiling.py   what they share

A super-block is `subs` groups of `size` numbers. Affine ones hold d * a * q - dmin * b, with a and b integers of a
group and q a code; signed ones hold d * a * level(q). The search has two parts:

* each group by itself: codes under a few scales, the least-squares scale (and offset) of each set of codes, the best of
  them, refined by rounding and fitting in turn;
* the super-block: with d (and dmin) from the largest group, each group takes the integers that lose least, out of the
  `reach` neighbours of its own best; then d and dmin are fitted, by least squares, to all codes and integers at once.
  There are up to `turns` of this, while the error falls.

The groups of a super-block lie side by side, x[number of the group, group]: sums over a group are then sums of vectors,
with one lane to a group and nothing to add up across lanes, twice as fast as group by group.

llama.cpp's `make_qkx3_quants` does the first part with 21 to 37 scales, each measured in a second pass, and derives the
super-block's scale from the groups' alone. Here the error follows from the sums of the fit, loops have constant bounds
so that they become vector code, and the second part brings more than further scales would.

Weights of the squared errors: the importance of the column or, without, sqrt(mean(x^2) + x^2) of the group.
"""

from .affine import affine
from .integers import code_sums
from .lines import line
from .multiples import multiple, nearest_scale
from .rows import k_means, nearest_in_rows
from .signed import signed

__all__ = ["affine", "code_sums", "k_means", "line", "multiple", "nearest_in_rows", "nearest_scale", "signed"]
