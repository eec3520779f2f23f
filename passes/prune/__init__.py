"""Passes that make a model narrower or shallower: what they leave out is found by the axes that move together.

neurons.py  heads.py  channels.py  hidden.py  vocabulary.py   what each pass prunes
layers.py        whole layers                    base.py         options, allocation and sweep
cuts.py          units to choose from            elimination.py  which units go, and the refit
allocation.py    how much of each layer
"""

from irlab.passes.prune.heads import PruneHeads
from irlab.passes.prune.layers import DropLayers
from irlab.passes.prune.neurons import PruneNeurons

__all__ = ["DropLayers", "PruneHeads", "PruneNeurons"]
