"""What is learned, by the `task` of a data source: the loss, how a model is judged, and how much a batch weighs.

A data source tells its task and hands out tuples of NumPy arrays, batch first:

    next_token       (inputs, targets[, segments])     int32 (B, L) each; `ignore` where no target is asked for. Segments number
                                                        the documents of a row 1, 2, ...; 0 is padding
    classification   (inputs[, lengths], labels)        tokens (B, L) or channels (B, L, D); labels int32 (B,)
    regression       (inputs[, lengths], targets)       targets float (B, outputs)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

from ember_ml.data.synthetic import IGNORED
from ember_ml.errors import ConfigError
from ember_ml.nn import losses
from ember_ml.nn.models.base import Model
from ember_ml.nn.module import Module
from ember_ml.nn.moe import token_classes
from ember_ml.nn.packing import padded
from ember_ml.ops import argmax, tensor
from ember_ml.tensor import EmberTensor

#: largest vocabulary whose tokens are classes that experts are counted by
_CLASSES = 64


@dataclass(frozen=True)
class Objective:
    """A task.

    loss: `loss(model, *batch)`, a scalar, the mean over the batch's targets. count: `count(arrays)`, their number.
    measure: `measure(model, *batch) -> {name: mean over the targets}`. report: those means over all batches as scores; the first is
    the one that decides which model is best. higher: whether more of it is better.
    """

    loss: Callable
    count: Callable
    measure: Callable
    report: Callable
    higher: bool = False

    def evaluate(self, model: Module, batches: Iterable, measure: Callable | None = None) -> dict[str, float]:
        """Scores by name over all batches, each weighed by its number of targets.

        Args:
            measure: a compiled form of `measure`, called as `measure(tensors, *batch)`.
        """
        device, sums, total = next(iter(model.tensors().values())).device, {}, 0
        for arrays in batches:
            count, batch = self.count(arrays), tuple(tensor(a, device=device) for a in arrays)
            if count:
                found = measure(model.tensors(), *batch) if measure else self.measure(model, *batch)
                sums = {name: sums.get(name, 0.0) + value.item() * count for name, value in found.items()}
                total += count
        if not total:
            raise ConfigError("evaluate: expected held-out data with at least one target, got none")
        return self.report({name: value / total for name, value in sums.items()})


def next_token_loss(model: Module, inputs, targets, segments=None) -> EmberTensor:
    """Mean cross-entropy in nats of the next token. Experts are counted by the token they work on."""
    vocabulary = getattr(model.config, "vocab_size", 0) or 0
    with token_classes(inputs, vocabulary) if 0 < vocabulary <= _CLASSES else nullcontext():
        if isinstance(model, Model):
            return model.loss(inputs, targets, segments, ignore=IGNORED)
        return losses.cross_entropy(model(inputs)[0], targets, ignore=IGNORED)


def _next_token_count(arrays) -> int:
    return int((arrays[1] != IGNORED).sum())


def _whole(model: Module, inputs, rest) -> tuple[EmberTensor, EmberTensor]:
    """(the model's output for each whole sequence, the targets)."""
    if len(rest) == 1:
        return _wide(model(inputs)[0]), rest[0]
    lengths, targets = rest
    return _wide(model(inputs, segments=padded(lengths, inputs.shape[1]))[0]), targets


def _wide(x: EmberTensor) -> EmberTensor:
    """Errors are measured in float32 at least, whatever was computed in."""
    return x if x.dtype.bits >= 32 else x.astype("float32")


def classification_loss(model: Module, inputs, *rest) -> EmberTensor:
    """Mean cross-entropy in nats of the class of a sequence."""
    logits, labels = _whole(model, inputs, rest)
    return losses.cross_entropy(logits, labels)


def _classification_measure(model, inputs, *rest):
    logits, labels = _whole(model, inputs, rest)
    return {"accuracy": (argmax(logits, axis=-1) == labels).astype("float32").mean(), "nats": losses.cross_entropy(logits, labels)}


def regression_loss(model: Module, inputs, *rest) -> EmberTensor:
    """Mean squared error over all outputs of all sequences."""
    return losses.mse(*_whole(model, inputs, rest))


def _regression_measure(model, inputs, *rest):
    found, targets = _whole(model, inputs, rest)
    return {"mse": losses.mse(found, targets), "mae": losses.mae(found, targets)}


def _sequences(arrays) -> int:
    return len(arrays[-1])


#: by the task of a data source
OBJECTIVES = {
    "next_token": Objective(next_token_loss, _next_token_count, lambda model, *batch: {"nats": next_token_loss(model, *batch)},
                            lambda means: {"bits": means["nats"] / math.log(2.0)}),
    "classification": Objective(classification_loss, _sequences, _classification_measure, dict, higher=True),
    "regression": Objective(regression_loss, _sequences, _regression_measure, dict),
}
