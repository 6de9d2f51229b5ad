"""Train: a recipe to a model with a report; two recipes to an answer.

run = spile.train("timm:resnet18", "photos/", out="run", supervise=spile.Supervision(taps="auto"), epochs=20)
print(spile.compare(recipe, replace(recipe, supervise=spile.Supervision()), seeds=5))
"""

from spile.training.comparing import Comparison, compare
from spile.training.heads import load_supervised
from spile.training.recipe import Augmentation, Recipe, Supervision
from spile.training.running import TrainRun, train

__all__ = [
    "Augmentation",
    "Comparison",
    "Recipe",
    "Supervision",
    "TrainRun",
    "compare",
    "load_supervised",
    "train",
]
