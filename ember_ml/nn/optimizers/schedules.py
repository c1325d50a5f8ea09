"""Learning rates as functions of the update number, in tensor arithmetic, so that they live inside a compiled step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from ember_ml.ops import clip, cos, minimum
from ember_ml.registry.config import Size, config
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: type for fields: a learning rate
LearningRate = Annotated[float, pydantic.Field(ge=0.0, allow_inf_nan=False)]


@config
class Schedule:
    """Linear warm-up to `peak` over `warmup` updates, then `shape` down to `floor` at update `total`.

        warm-up:  peak (step + 1) / warmup        while step < warmup
        cosine:   floor + (peak - floor) (1 + cos(pi p)) / 2,  p = (step - warmup) / (total - warmup)
        linear:   floor + (peak - floor) (1 - p)
        constant: peak

    Args:
        peak, floor: learning rates. warmup, total: numbers of updates.
    """

    peak: LearningRate
    total: Size
    warmup: Annotated[int, pydantic.Field(ge=0)] = 0
    floor: LearningRate = 0.0
    shape: Literal["cosine", "linear", "constant"] = "cosine"

    def __call__(self, step: EmberTensor) -> EmberTensor:
        """Rate of the update number `step` (int32 scalar, from 0): float32 scalar."""
        s = step.astype(dt.float32)
        p = clip((s - self.warmup) / max(self.total - self.warmup, 1), min=0.0, max=1.0)
        fall = {"cosine": lambda: 0.5 * (1.0 + cos(p * math.pi)), "linear": lambda: 1.0 - p,
                "constant": lambda: p * 0.0 + 1.0}[self.shape]()
        rate = self.floor + (self.peak - self.floor) * fall
        return rate if self.warmup == 0 else rate * minimum((s + 1.0) / self.warmup, 1.0)
