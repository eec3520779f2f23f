"""Passes that make a model narrower or shallower: what they leave out is found by the axes that move together.

neurons.py, heads.py, channels.py   a pass each, of units that move together
    cuts.py         units to choose from             base.py         options; by magnitude
    measured.py     by what data shows, in a sweep   elimination.py  which units go, and the refit
    allocation.py   how much of each layer
hidden.py       directions of the residual stream
    principal.py     which move most                 bottlenecks.py  different ones for each norm
    maps.py          how maps disappear in matrices  stream_refit.py what makes up for those that go
vocabulary.py   tokens, and tokenizer.py what remains of a tokenizer
layers.py       whole layers
    streams.py      layers as steps of a stream      layer_choice.py how much each is missed
    bridging.py     what makes up for them
"""

from irlab.passes.prune.channels import PruneChannels
from irlab.passes.prune.heads import PruneHeads
from irlab.passes.prune.hidden import PruneHidden
from irlab.passes.prune.layers import DropLayers
from irlab.passes.prune.neurons import PruneNeurons
from irlab.passes.prune.vocabulary import PruneVocabulary

__all__ = ["DropLayers", "PruneChannels", "PruneHeads", "PruneHidden", "PruneNeurons", "PruneVocabulary"]
