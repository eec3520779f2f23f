"""`python -m irlab` is `irlab-opt`."""

import sys

from .cli import main

sys.exit(main())
