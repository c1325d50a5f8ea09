"""One update from several batches, as if they were one: for batches that do not fit the memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ember_ml import autodiff
from ember_ml.autodiff import tree
from ember_ml.nn.gradient import value_and_grad
from ember_ml.nn.module import Module
from ember_ml.nn.optimizers.base import Optimizer
from ember_ml.nn.pipeline.training.step import runtime_of, update_key, updated
from ember_ml.ops import full
from ember_ml.tensor.common import dtypes as dt


def make_accumulating_step(model: Module, loss: Callable, optimizer: Optimizer, clip: float | None = None, compile: bool = False,
                           ema: float | None = None, precision: str | None = None, recompute: bool = False) -> Callable:
    """`step(state, batches, counts, donate=False) -> (state, metrics)`: the update of `make_step` by the mean over all targets of all batches.

        gradient = sum_j n_j / N gradient_j,  N = sum_j n_j

    n_j are the targets of batch j. A plain mean of the batches' means would weigh the targets of short batches more. Metrics are means
    in the same way, and so are auxiliary losses, which are thereby taken a batch at a time. Running statistics pass through the
    batches one after the other.

    Args:
        batches: an iterable of tuples of tensors, of any shapes; each is asked for when it is due. counts: their targets, ints.
        The others: see `make_step`.
    """
    runtime = runtime_of(model)
    compiles = compile and runtime.compiles
    gradients = value_and_grad(model, loss, compile=compiles == "loss", precision=precision, recompute=recompute)

    def add(total, state, part, count, whole, batch):
        """The sums so far and those of one more batch; `total` is None before the first."""
        buffers = state["buffers"] if total is None else total["buffers"]
        out, grads = gradients(state["params"], buffers, (update_key(state), part), *batch)
        sums = tree.map(lambda x: x * (count.astype(x.dtype) / whole.astype(x.dtype)) if x.dtype.is_inexact else x, {"grads": grads, "metrics": out.metrics})
        if total is not None:
            sums = tree.map(lambda a, b: a + b, {"grads": total["grads"], "metrics": total["metrics"]}, sums)
        return {**sums, "buffers": out.buffers}

    def finish(state, total, donate=False):
        return updated(state, total["grads"], total["buffers"], total["metrics"], optimizer, clip, ema, donate)

    if compiles == "step":
        add, finish = autodiff.compile(add), autodiff.compile(finish)

    def step(state, batches: Iterable[tuple], counts: list[int], donate: bool = False):
        like, total = state["optimizer"]["step"], None
        whole = full((), max(sum(counts), 1), dt.int32, like=like)
        for j, (batch, count) in enumerate(zip(batches, counts)):
            total = add(total, state, full((), j, dt.int32, like=like), full((), count, dt.int32, like=like), whole, batch)
            runtime.synchronize([t.data for t in tree.tensors(total)])      # else a lazy engine would hold all batches at once
        return finish(state, total, donate and compiles != "step")
    return step
