"""What is the smallest module on which a command still fails? Delta debugging, for `irlab-opt --reduce`.

ddmin.py   the search for a minimal subset          strategies.py  what can be left out of a module or a pipeline
pieces.py  a graph with some of its ops only        trial.py       does the command fail in the same way?
run.py     strategies one after another, keeping the best
"""

from __future__ import annotations

from .ddmin import ddmin
from .run import Case, reduce_case
from .strategies import PIPELINE_STRATEGIES, STRATEGIES
from .trial import Command, Outcome

__all__ = ["PIPELINE_STRATEGIES", "STRATEGIES", "Case", "Command", "Outcome", "ddmin", "reduce_case"]
