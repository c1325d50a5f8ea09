"""One training update as a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml import autodiff
from ember_ml.nn.gradient import value_and_grad
from ember_ml.nn.module import Module
from ember_ml.nn.optimizers.base import Optimizer, clip_by_global_norm
from ember_ml.ops import random
from ember_ml.tensor import EmberTensor


def initial_state(model: Module, optimizer: Optimizer, key: EmberTensor) -> dict:
    """The state before the first update: params, buffers, optimizer, key; a tree of tensors and nothing else."""
    params = model.parameters(trainable=True)
    return {"params": params, "buffers": model.buffers(), "optimizer": optimizer.init(params), "key": key}


def make_step(model: Module, loss: Callable, optimizer: Optimizer, clip: float | None = None,
              compile: bool = False) -> Callable:
    """`step(state, batch) -> (state, metrics)`, pure, so that it can be compiled, repeated and resumed.

    Args:
        model: gives structure and frozen parameters. loss: `loss(model, *batch)`, a scalar.
        optimizer: makes the update. clip: largest global norm of the gradients.
        compile: compile what the engine compiles: the whole step on MLX, the loss on torch, nothing on NumPy.

    Metrics: loss, those of the model, rate, and grad_norm if clipped; scalars as tensors. The key of an update is the
    state's key with the number of the update folded in.
    """
    runtime = next(iter(model.tensors().values())).backend.runtime
    gradients = value_and_grad(model, loss, compile=compile and runtime.compiles == "loss")

    def step(state, batch):
        count = state["optimizer"]["step"]
        out, grads = gradients(state["params"], state["buffers"], random.fold_in(state["key"], count), *batch)
        metrics = {**out.metrics, "rate": optimizer.rate(count)}
        if clip is not None:
            grads, metrics["grad_norm"] = clip_by_global_norm(grads, clip)
        params, optimizer_state = optimizer.update(state["params"], grads, state["optimizer"])
        return {"params": params, "buffers": out.buffers, "optimizer": optimizer_state, "key": state["key"]}, metrics

    return autodiff.compile(step) if compile and runtime.compiles == "step" else step
