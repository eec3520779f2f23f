"""How the demo model in ``irlab/demo`` is made: text, sampling of more text, training."""
