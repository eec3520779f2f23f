"""Why a rule did not match: `--why-not fuse-rms-norm`.

>>> for miss in why_not(graph, FuseRMSNorm): print(miss)
prim.mul at model.norm: matched 5 of 6 pattern nodes; expected prim.rsqrt, found prim.sqrt
"""

from __future__ import annotations

from .explainer import Explainer, NearMiss
from .report import format_near_misses, why_not

__all__ = ["Explainer", "NearMiss", "format_near_misses", "why_not"]
