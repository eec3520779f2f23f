"""heal: train what passes have left of a model to say again what it said before them."""

from irlab.passes.heal.heal import Heal

__all__ = ["Heal"]
