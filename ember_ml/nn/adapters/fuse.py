"""Fusing: a model without adapters that computes what it computed with them, checked before anything changes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import NamedTuple

from ember_ml.errors import WeightsError
from ember_ml.nn.adapters.lora import adapters
from ember_ml.nn.layers.channel_mixing.dense import Dense
from ember_ml.nn.models.base import Model
from ember_ml.ops import exp, expm1, log_softmax
from ember_ml.tensor import EmberTensor

#: heads whose outputs are logits
_LOGITS = ("tied", "dense", "classifier")


class Fused(NamedTuple):
    """How far the fused model is from the adapted one, and how far the model without adapters was: mean KL divergences in nats a position
    (a sequence, for a classifier); for models without logits mean squared differences over the mean square.
    """

    changed: float
    without: float


def fuse(model: Model, probe: EmberTensor, bound: float = 1e-3, force: bool = False) -> Fused:
    """Adds every LoRA of a model to the weight beside it and removes it, if the model then still computes the same.

    Where weights are stored in few bits (bfloat16, float16) a small change may vanish in their rounding: the fused model then
    is the one from before the training. So both are run on a probe first.

    Args:
        model: with LoRA. probe: inputs to compare on, tokens (B, L) or channels (B, L, D): of the kind that it was trained on.
        bound: largest divergence that will do, in nats. force: fuse whatever the divergence is.

    Raises WeightsError if the divergence is larger or no number, with what to do; ConfigError without LoRA. Then nothing has changed.

    Source: Hu et al. 2021, LoRA, section 4.1 (no additional inference latency).
    """
    layers = {name: m for name, m in model.modules().items() if name in adapters(model)}
    if not layers:
        raise WeightsError("fuse: expected a model with LoRA, got one without; see add_lora")
    wide = {name: dense.adapter.matrix() for name, dense in layers.items()}
    fused = {f"{name}.weight": (dense.weight.astype(wide[name].dtype) + wide[name]).astype(dense.weight.dtype) for name, dense in layers.items()}
    adapted = model(probe)[0]
    with _without(layers.values()):
        plain = model(probe)[0]
        with model.using(fused):
            merged = model(probe)[0]
    logits = model.config.head in _LOGITS
    found = Fused(*(divergence(adapted, other, logits) for other in (merged, plain)))
    if not found.changed <= bound and not force:
        raise WeightsError(f"fuse: expected a divergence of at most {bound:.1e} between the adapted and the fused model, got {found.changed:.2e} "
                           f"(without the adapters it is {found.without:.2e}): {next(iter(layers.values())).weight.dtype} weights round the "
                           "change away; fuse model.astype('float32'), keep the adapter beside the model, or pass a larger bound, or force=True")
    for dense in layers.values():
        dense.adapter = None
    model.install(fused)
    model.unfreeze()
    return found


def divergence(p: EmberTensor, q: EmberTensor, logits: bool) -> float:
    """Mean of sum_c P_c (log P_c - log Q_c) for logits (..., classes), else mean (p - q)^2 / mean p^2.

    As P and Q each sum to 1, that is the sum of P_c (e^d_c - 1 - d_c) with d = log Q - log P: terms that are not negative, so that
    nothing cancels between classes.
    """
    p, q = (t.astype("float32") if t.dtype.bits < 32 else t for t in (p, q))
    if not logits:
        return (((p - q) ** 2).mean() / (p ** 2).mean()).item()
    p, q = log_softmax(p, axis=-1), log_softmax(q, axis=-1)
    return (exp(p) * (expm1(q - p) - (q - p))).sum(axis=-1).mean().item()


@contextmanager
def _without(layers):
    """Inside, these layers have no adapters."""
    kept: list[tuple[Dense, object]] = [(dense, dense.adapter) for dense in layers]
    try:
        for dense, _ in kept:
            dense.adapter = None
        yield
    finally:
        for dense, adapter in kept:
            dense.adapter = adapter
