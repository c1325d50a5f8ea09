"""Activation checkpointing of modules: a block's inside is computed again for the gradient instead of being kept."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml import autodiff
from ember_ml.nn import packing, scope
from ember_ml.nn.module import Module


def recomputed(module: Module) -> Callable:
    """`run(x) -> y`: the first output of `module(x)`, of which the gradient keeps the inputs and parameters alone.

    Values, gradients, dropout masks and all that goes to the open training scope are those of the plain call, on every engine.

    Args:
        module: a block, called without a state, that returns (y, state).

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    def run(x):
        outer = scope.current()
        start, end = outer.drawn, outer.drawn

        def pure(tensors, key, classes, segments, x):
            nonlocal end
            with module.using(tensors), packing.again(segments), scope.training(key) as inner:
                inner.drawn, inner.classes = start, classes    # the keys that the plain call would draw
                y, _ = module(x)
            end = inner.drawn
            return y, inner.losses, inner.metrics, inner.updates

        rows = packing.current()
        y, *told = autodiff.checkpoint(pure)(module.tensors(), outer.key, outer.classes, None if rows is None else rows.segments, x)
        outer.drawn = end
        outer.take(*told)
        return y
    return run
