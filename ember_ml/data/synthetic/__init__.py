"""The synthetic probe tasks of MAD: each asks one ability of a sequence mixer, on data that a formula draws."""

from ember_ml.data.synthetic.base import IGNORED, Task
from ember_ml.data.synthetic.memory import Compression, Memorization, SelectiveCopying
from ember_ml.data.synthetic.recall import FuzzyInContextRecall, InContextRecall, NoisyInContextRecall

#: by the names that MAD gives them
TASKS: dict[str, type[Task]] = {
    "in_context_recall": InContextRecall, "noisy_in_context_recall": NoisyInContextRecall, "fuzzy_in_context_recall": FuzzyInContextRecall,
    "selective_copying": SelectiveCopying, "compression": Compression, "memorization": Memorization,
}

__all__ = ["IGNORED", "TASKS", "Compression", "FuzzyInContextRecall", "InContextRecall", "Memorization", "NoisyInContextRecall",
           "SelectiveCopying", "Task"]
