"""The pattern language: what a piece of graph looks like, as data.

A pattern is built by calling `p` the way the graph itself would be built, with variables where anything may stand:

    p.rsqrt(x)                        the op prim.rsqrt on anything, called x
    x * p.sigmoid(x)                  operators work; a repeated variable must be the same value
    x * 0.5                           a number is a constant: floats within 1e-5 relative, integers exactly
    p.const(eps)                      any constant, its number captured as `eps`
    p.mean(x, axes=[-1])              attributes by name: a literal (axes may count from either end) ...
    p.cast(x, dtype=d)                ... or a variable, which captures the attribute ...
    p.topk(x, k=lambda k: k <= 8)     ... or a condition on it, as for p.var
    p.maybe(p.cast, x)                cast(x) or x itself; `flag=f` captures whether the cast was there
    p.any_of(p.gelu(x), p.silu(x))    the first alternative that matches; variables of the others are None
    p.chain(p.mul, x, 0.5, y)         their product in any order and association: (x * y) * 0.5, x * (y * 0.5) ...
    p.concat(a, *rest, axis=-1)       `*rest` captures the remaining operands as a tuple
    p.linear(x, w, p.optional(b))     an operand that may be missing (b is None then)
    p.topk(x, k=2)[1]                 result 1 of an op with several results (`t = p.topk(x); t[0] + t[1]`: of one op)
    p.shared(x * y), (x * y).multi_use()    this value may have uses outside the pattern
    (x * y).named("xy")               captures the value of an inner node as `xy`
    p.var("w", where=lambda w: w.type.rank == 1 or "w must be a vector")    a variable with a condition; also for
                                      captured numbers and attributes. A string is the reason for refusing
    p.op(MyOp, x), p.op("my.op", x)   an op class of yours; p.prim.add, p.nn.linear say the dialect

What is matched:

* Commutative ops match in both orders, at every level.
* An attribute that the pattern does not mention may be anything. An *optional operand* that it does not mention must be
  missing, so that no rule drops a bias it did not see.
* A rule's pattern consumes what it matches. So the value of every inner op must have no use outside the match, else the
  rewrite would compute it twice. `p.shared` lifts this. Constants and weights are free.
* One pattern object used twice stands for one value: in `n = p.cast(x); n * p.rsqrt(n)` both are the same cast.

A tuple of patterns has several roots, which match different ops; every root after the first must share a value with an
earlier one.
"""

from __future__ import annotations

from .constructors import OpConstructor, p
from .nodes import Pattern, PatternError, Variable

__all__ = ["OpConstructor", "Pattern", "PatternError", "Variable", "p"]
