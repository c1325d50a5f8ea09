"""Scaled dot product attention."""

from __future__ import annotations

import math

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import softmax
from ember_ml.ops.creation import arange
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import logical_and, where
from ember_ml.ops.linear import matmul
from ember_ml.ops.rearrange import repeat
from ember_ml.ops.shape import concat, cut, expand_dims, pad, permute_dims, reshape, swap_axes
from ember_ml.tensor import EmberTensor


def hidden(x: EmberTensor) -> float:
    """What stands for -inf in the scores: finite, so that an all-masked row stays finite."""
    return -1e30 if x.dtype.bits >= 32 else -6e4


def _seen(length: int, keys: int, window: int | None, like: EmberTensor) -> EmberTensor:
    """bool (length, keys): which keys a causal query sees; the last query stands at the last key."""
    rows, columns = expand_dims(arange(length, like=like) + (keys - length), 1), expand_dims(arange(keys, like=like), 0)
    seen = columns <= rows
    return seen if window is None else logical_and(seen, columns > rows - window)


@op(public="attention", rule="promote")
def attention_rows(q, k, v, mask=None, *, causal, scale):
    """Native form of `scaled_dot_product_attention`: checked shapes, no window, and a mask of numbers."""
    if k.shape[-3] != q.shape[-3]:
        times = q.shape[-3] // k.shape[-3]
        k, v = repeat(k, times, axis=-3), repeat(v, times, axis=-3)
    scores = matmul(q, swap_axes(k)) * scale
    if causal:
        scores = where(_seen(q.shape[-2], k.shape[-2], None, q), scores, hidden(q))
    return matmul(softmax(scores if mask is None else scores + mask, axis=-1), v)


def _banded(q, k, v, window, scale):
    """Causal attention within a window, block by block: each block of `window` queries sees its own keys and those of the one before."""
    (batch, heads, length, _), spare = q.shape, -q.shape[2] % window
    q, k, v = (pad(x, ((0, 0), (0, 0), (0, spare), (0, 0))) if spare else x for x in (q, k, v))
    first = attention_rows(*(cut(x, 0, window, axis=2) for x in (q, k, v)), None, causal=True, scale=scale)
    n = q.shape[2] // window

    def blocks(x):
        return reshape(x, (*x.shape[:2], n, window, x.shape[-1]))

    def rows(x):                                           # the blocks beside the batch
        return reshape(permute_dims(x, (0, 2, 1, 3, 4)), (batch * (n - 1), x.shape[1], *x.shape[3:]))

    late = rows(cut(blocks(q), 1, n, axis=2))
    both = [rows(concat([cut(blocks(x), 0, n - 1, axis=2), cut(blocks(x), 1, n, axis=2)], axis=3)) for x in (k, v)]
    mask = where(_seen(window, 2 * window, window, q), 0.0, hidden(q)).astype(q.dtype)
    y = attention_rows(late, *both, mask, causal=False, scale=scale)
    y = permute_dims(reshape(y, (batch, n - 1, heads, window, y.shape[-1])), (0, 2, 1, 3, 4))
    y = concat([first, reshape(y, (batch, heads, (n - 1) * window, y.shape[-1]))], axis=2)
    return cut(y, 0, length, axis=2) if spare else y


def scaled_dot_product_attention(q: EmberTensor, k: EmberTensor, v: EmberTensor, causal: bool = False,
                                 mask: EmberTensor | None = None, scale: float | None = None,
                                 window: int | None = None) -> EmberTensor:
    """softmax(scale * q k^T + mask) v, heads and batch leading.

    Args:
        q: (..., H, L, head_dim). k, v: (..., h, S, head_dim); h divides H, a key head then serves H / h neighbouring query heads.
        causal: position i sees j <= i + S - L only.
        mask: bool (true where seen) or float (added), broadcasting to (..., H, L, S).
        scale: default 1 / sqrt(head_dim).
        window: with `causal`, positions that a query sees, its own included; None for all. Whole sequences longer than two windows are
            computed block by block, in time and memory L * window.

    Returns: (..., H, L, head_dim). Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1; Ainslie et al. 2023, GQA; Beltagy
    et al. 2020, Longformer, for the window.

    Raises ShapeError where the shapes do not fit, ValueError for a window without `causal`.
    """
    if q.ndim < 2 or q.ndim != k.ndim or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or (
            q.ndim > 2 and q.shape[-3] % k.shape[-3]):
        raise ShapeError("attention: expected q (..., H, L, d), k (..., h, S, d), v (..., h, S, e) with h a divisor of H; got "
                         f"{q.shape}, {k.shape}, {v.shape}")
    if window is not None and (not causal or window < 1):
        raise ValueError(f"attention: expected a window of at least 1 with causal=True; got window={window}, causal={causal}")
    scale = scale if scale is not None else 1.0 / math.sqrt(q.shape[-1])
    length, keys = q.shape[-2], k.shape[-2]
    if window is not None and window < keys:
        if mask is None and q.ndim == 4 and length == keys and length > 2 * window:
            return _banded(q, k, v, window, scale)
        causal, seen = False, _seen(length, keys, window, q)
        mask = seen if mask is None else logical_and(mask, seen) if mask.dtype.kind == "bool" else where(seen, mask, hidden(q))
    if mask is not None and mask.dtype.kind == "bool":
        mask = where(mask, 0.0, hidden(q))
    two = q.ndim == 2                                     # one head, unnamed
    if two:
        q, k, v = (expand_dims(x, 0) for x in (q, k, v))
    y = attention_rows(q, k, v, None if mask is None else mask.astype(q.dtype), causal=causal and length > 1, scale=scale)
    return y[0] if two else y
