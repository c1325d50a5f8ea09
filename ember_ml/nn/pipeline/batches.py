"""A function of a batch, applied to any number of sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ember_ml.errors import ShapeError
from ember_ml.nn.module import Module
from ember_ml.nn.packing import padded
from ember_ml.ops import concat, tensor
from ember_ml.tensor import EmberTensor


def in_batches(fn: Callable, model: Module, data: Any, size: int) -> EmberTensor:
    """`fn(inputs, segments)` of `size` sequences at a time, one after the other in memory, joined along the first axis.

    Args:
        fn: segments tell padding from what is real, see `ember_ml.nn.packing`; None where there is none.
        model: says where to compute. data: inputs, tokens (N, L) or channels (N, L, D); or (inputs, lengths), true lengths (N,).

    Raises TypeError for what is no model, ShapeError for no sequence at all, or lengths that are not one a sequence.
    """
    if not isinstance(model, Module):
        raise TypeError(f"pipeline: expected a model, got {type(model).__name__}; nn.Model.load(path) reads one")
    inputs, lengths = data if isinstance(data, (tuple, list)) and len(data) == 2 else (data, None)
    like = next(iter(model.tensors().values()))
    inputs = tensor(inputs, device=like.device)
    if inputs.ndim < 2 or inputs.shape[0] == 0 or (lengths is not None and len(lengths) != inputs.shape[0]):
        raise ShapeError(f"pipeline: expected inputs (N, length[, channels]) of at least one sequence, and one length for each; got "
                         f"{inputs.shape}" + ("" if lengths is None else f" and {len(lengths)} lengths"))
    parts = []
    for at in range(0, inputs.shape[0], size):
        segments = None if lengths is None else padded(tensor(lengths[at:at + size], device=like.device), inputs.shape[1])
        parts.append(fn(inputs[at:at + size], segments))
        like.backend.runtime.synchronize([parts[-1].data])
    return concat(parts, axis=0)
