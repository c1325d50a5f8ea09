"""Cross-entropy of a linear head, some rows at a time, so that the logits of all rows are never held at once.

A head of V classes over N positions makes N x V logits, often the largest array of a training step. Here a chunk of rows is
mapped, reduced to its losses and forgotten; the gradient maps each chunk again. Numbers are those of the whole, for one more
matrix product. Source: Wijmans et al. 2025, Cut Your Losses in Large-Vocabulary Language Models, for the idea.
"""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import softmax
from ember_ml.ops.creation import zeros
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import tanh, where
from ember_ml.ops.index import put_add_along_axis
from ember_ml.ops.linear import linear, matmul
from ember_ml.ops.loss import checked_labels, cross_entropy_rows
from ember_ml.ops.recurrence.chunks import after
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, reshape, swap_axes
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: logits held at once where no chunk is given: 64 MiB in float32
_HELD = 1 << 24


def _wide(x):
    """Sums and softmax are taken in float32 at least."""
    return x if x.dtype.bits >= 32 else x.astype(dt.float32)


def _logits(x, weight, bias, cap):
    z = _wide(linear(x, weight, bias))
    return z if cap is None else tanh(z / cap) * cap


def _pieces(x, labels, chunk, *more):
    """(start, rows of x, of labels, of more) of each chunk."""
    for start in range(0, x.shape[0], chunk):
        stop = min(start + chunk, x.shape[0])
        yield tuple(t if stop - start == x.shape[0] else cut(t, start, stop, axis=0) for t in (x, labels, *more))


def _grad(g, _y, x, weight, labels, bias=None, *, cap=None, chunk):
    dxs, dw, db, done = [], None, None, []
    for rows, marks, given in _pieces(x, labels, chunk, g):
        if done:                                           # a lazy engine would compute all chunks side by side
            (rows,) = after([rows], done)
        z = _logits(rows, weight, bias, cap)
        given = expand_dims(given, -1)
        d = put_add_along_axis(softmax(z, axis=-1) * given, expand_dims(marks, -1), -given, axis=-1)
        if cap is not None:
            d = d * (1.0 - (z / cap) * (z / cap))
        part = None if bias is None else total(d, axis=0)
        d = d.astype(x.dtype)
        dxs.append(matmul(d, weight))
        new = _wide(matmul(swap_axes(d), rows))
        dw, db = (new, part) if dw is None else (dw + new, None if part is None else db + part)
        done = [dxs[-1], dw]
    return (dxs[0] if len(dxs) == 1 else concat(dxs, axis=0)), dw, None, db


@op(public="linear_cross_entropy", vjp=_grad, owns_gradient=True)
def linear_cross_entropy_rows(x, weight, labels, bias=None, *, cap=None, chunk):
    """Native form of `linear_cross_entropy`: x (N, D) of at least one row, labels in range."""
    out = []
    for rows, marks in _pieces(x, labels, chunk):
        if out:
            (rows,) = after([rows], out[-1:])
        out.append(cross_entropy_rows(_logits(rows, weight, bias, cap), marks))
    return out[0] if len(out) == 1 else concat(out, axis=0)


def linear_cross_entropy(x: EmberTensor, weight: EmberTensor, labels: EmberTensor, bias: EmberTensor | None = None,
                         ignore: int | None = None, cap: float | None = None, chunk: int | None = None) -> EmberTensor:
    """-log softmax(x W^T + b)[label] in nats, one value per row, without ever holding the logits of all rows.

    Args:
        x: (..., D), hidden states. weight: (V, D), the head's, in x's dtype. bias: (V,) or None.
        labels: (...), integers in [0, V), or `ignore`, whose rows give 0 and no gradient.
        cap: the logits z become cap tanh(z / cap); None for no cap.
        chunk: rows at a time; None for as many as make 2^24 logits. It changes memory and speed, not the numbers.

    Returns: (...), float32 for half-precision x, else in x's dtype. Half-precision logits are made in x's dtype, as a head of its own
    makes them, and reduced in float32; the weight's gradient is summed over the chunks in float32.

    Memory beside inputs and gradients: some arrays of (chunk, V), forward and backward.

    Raises ShapeError where shapes do not fit or chunk is below 1; TypeError, IndexError for labels as in `cross_entropy`.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1] or labels.shape != x.shape[:-1]:
        raise ShapeError(f"linear_cross_entropy: expected x (..., D), weight (V, D) and labels (...), got {x.shape}, {weight.shape} and "
                         f"{labels.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear_cross_entropy: expected bias of shape {weight.shape[:1]}, got {bias.shape}")
    if chunk is not None and chunk < 1:
        raise ShapeError(f"linear_cross_entropy: expected a chunk of at least 1 row, got {chunk}")
    labels, seen = checked_labels("linear_cross_entropy", labels, weight.shape[0], ignore)
    if labels.size == 0:
        return zeros(labels.shape, dt.float32 if x.dtype.bits < 32 else x.dtype, like=x)
    chunk = chunk or max(1, _HELD // weight.shape[0])
    flat = linear_cross_entropy_rows(reshape(x, (-1, x.shape[-1])), weight, reshape(labels, (-1,)), bias, cap=cap, chunk=chunk)
    rows = reshape(flat, labels.shape)
    return rows if seen is None else where(seen, rows, 0.0)
