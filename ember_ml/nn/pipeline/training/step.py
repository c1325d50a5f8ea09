"""One training update as a pure function of state and batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ember_ml import autodiff
from ember_ml.nn.gradient import value_and_grad
from ember_ml.nn.module import Module
from ember_ml.nn.optimizers.base import Optimizer, clip_by_global_norm
from ember_ml.nn.pipeline.training.ema import moving_average
from ember_ml.tensor import EmberTensor


def initial_state(model: Module, optimizer: Optimizer, key: EmberTensor, ema: float | None = None) -> dict:
    """The state before the first update: params, buffers, optimizer, key and, with ema, average; a tree of tensors and nothing else."""
    params = model.parameters(trainable=True)
    state = {"params": params, "buffers": model.buffers(), "optimizer": optimizer.init(params), "key": key}
    return state if ema is None else {**state, "average": params}


def make_step(model: Module, loss: Callable, optimizer: Optimizer, clip: float | None = None, compile: bool = False,
              ema: float | None = None, precision: str | None = None, recompute: bool = False) -> Callable:
    """`step(state, batch, donate=False) -> (state, metrics)`, pure, so that it can be compiled, repeated and resumed.

    Args:
        model: gives structure and frozen parameters. loss: `loss(model, *batch)`, a scalar.
        optimizer: makes the update. clip: largest global norm of the gradients.
        compile: compile what the engine compiles: the whole step on MLX, the loss on torch, nothing on NumPy.
        ema: decay of the moving average of the parameters, None for no average.
        precision, recompute: see `ember_ml.nn.gradient.loss_function`.

    Metrics: loss, those of the model, rate, and grad_norm if clipped; scalars as tensors. The key of an update is the
    state's key with the number of the update folded in.

    donate gives the state away: nothing else may hold its tensors then, so that an engine may write the new parameters and optimiser
    state in the place of the old ones instead of copying them. The old dict is emptied when the update begins; after an error before
    that it is as it was. A compiled step places its memory by itself.
    """
    compiles = compile and runtime_of(model).compiles
    gradients = value_and_grad(model, loss, compile=compiles == "loss", precision=precision, recompute=recompute)

    def step(state, batch, donate=False):
        out, grads = gradients(state["params"], state["buffers"], update_key(state), *batch)
        return updated(state, grads, out.buffers, out.metrics, optimizer, clip, ema, donate)

    if compiles != "step":
        return step
    compiled = autodiff.compile(step)
    return lambda state, batch, donate=False: compiled(state, batch)


def runtime_of(model: Module):
    """What the engine of the model's tensors does its own way."""
    return next(iter(model.tensors().values())).backend.runtime


def update_key(state: dict) -> tuple:
    """The random key of the update that comes after this state, as a pair for the training scope."""
    return state["key"], state["optimizer"]["step"]


def updated(state: dict, grads: dict, buffers: dict, metrics: dict, optimizer: Optimizer, clip: float | None,
            ema: float | None, donate: bool = False) -> tuple[dict, dict]:
    """(state, metrics) after the update by these gradients: clipped, applied, averaged. donate: see `make_step`."""
    count = state["optimizer"]["step"]
    metrics = {**metrics, "rate": optimizer.rate(count)}
    if clip is not None:
        grads, metrics["grad_norm"] = clip_by_global_norm(grads, clip)
    given = {}
    if donate and "donate" in inspect.signature(optimizer.update).parameters:
        state, old, given = dict(state), state, {"donate": True}
        old.clear()                                          # an update that is cut short leaves no state
    params, optimizer_state = optimizer.update(state["params"], grads, state["optimizer"], **given)
    after = {"params": params, "buffers": buffers, "optimizer": optimizer_state, "key": state["key"]}
    if ema is not None:
        after["average"] = moving_average(state["average"], params, count, ema)
    return after, metrics
