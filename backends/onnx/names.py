"""How are nodes and values called? After the module path of the op they come from, as viewers group them."""

from __future__ import annotations

import re

from irlab.ir import Op


def op_label(op: Op) -> str:
    """The path of an op in the form "/model/layers.0/self_attn"; empty where nothing is known."""
    path = op.loc.path if op.loc else ""
    return "/" + re.sub(r"\.(?!\d)", "/", path) if path else ""
