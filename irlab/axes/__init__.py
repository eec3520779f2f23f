"""Which axes of which weights move together, and how is a graph made narrower along one of them?

axes = AxisAnalysis(module.graph)
for group in axes.groups.values():            # every indivisible axis, with its places in weights
    print(group.name, group.size, group.role, *group.places)

axis.py      axes as trees, and their unification        rules.py     how axes go through each op
analysis.py  the groups of a graph                       resize.py    a graph with fewer indices of some
describe.py  what moves together, in words
"""

from .analysis import AxisAnalysis, Group, Place, coordinates, positions
from .axis import Axis, leaves
from .describe import describe_groups
from .resize import cut, keep, resize

__all__ = [
    "Axis",
    "AxisAnalysis",
    "Group",
    "Place",
    "coordinates",
    "cut",
    "describe_groups",
    "keep",
    "leaves",
    "positions",
    "resize",
]
