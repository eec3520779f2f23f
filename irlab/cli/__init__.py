"""The command line, `irlab-opt`: lift a model, run passes over it, look at it, write it for a runtime.

options.py   the options and the help text             entry.py    main: dispatch, errors, exit status
answers.py   options that are questions of their own   compile.py  INPUT through the passes to the outputs
lift.py      INPUT into a module                       recipe.py   --recipe, --save-recipe
replay.py    a reproducer's options                    reduce.py   --reduce
completion.py  what shells complete
"""

from .entry import main
from .options import build_parser

__all__ = ["build_parser", "main"]
