"""Finds the update whose loss or gradient is no finite number, without waiting for the engine after every update."""

from __future__ import annotations

import math

from ember_ml.tensor import EmberTensor

_WATCHED = ("loss", "grad_norm")


class NanGuard:
    """Keeps the loss and gradient norm of the last updates, as tensors, until `check` reads them.

    Reading a number waits for the engine, so it is done when a row is written, a model evaluated or a checkpoint saved: none of these
    is ever made of a state that a NaN has reached, and the update that made it is known all the same.
    """

    def __init__(self):
        self._pending: list[tuple[int, dict[str, EmberTensor]]] = []

    def note(self, step: int, metrics: dict[str, EmberTensor]):
        """Takes note of an update. step: updates done with it."""
        self._pending.append((step, {name: metrics[name] for name in _WATCHED if name in metrics}))

    def check(self) -> tuple[int, str, float] | None:
        """(update, name, value) of the first number that is not finite since the last check, None if all are."""
        pending, self._pending = self._pending, []
        for step, metrics in pending:
            for name, value in metrics.items():
                if not math.isfinite(number := value.item()):
                    return step, name, number
        return None


def explain(step: int, name: str, value: float, batches: dict[int, tuple], saved: str | None) -> str:
    """What to tell of it.

    Args:
        step: the update. name, value: what is not finite. batches: the arrays of its batches, by number.
        saved: where the last checkpoint is, None if there is none.
    """
    what = {"loss": "loss", "grad_norm": "norm of the gradients"}[name]
    numbers = ", ".join(map(str, batches))
    spoilt = [f"array {place} of batch {i}" for i, arrays in batches.items() for place, a in enumerate(arrays)
              if a.dtype.kind == "f" and not (abs(a) < math.inf).all()]
    data = f"its data are not finite ({', '.join(spoilt)})" if spoilt else "its data are finite"
    remedy = "mend the data" if spoilt else "lower the learning rate, or training.clip"
    back = f"; the last good checkpoint is {saved}: --resume goes on from there" if saved else "; there is no checkpoint yet"
    return (f"train: the {what} of update {step} is {value}; it came with batch {numbers} of the data source (counted from 0), and "
            f"{data}: {remedy}{back}")
