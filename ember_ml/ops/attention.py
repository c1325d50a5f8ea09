"""Scaled dot product attention."""

from __future__ import annotations

import math

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import softmax
from ember_ml.ops.creation import arange
from ember_ml.ops.elementwise import where
from ember_ml.ops.linear import matmul
from ember_ml.ops.shape import expand_dims, swap_axes
from ember_ml.tensor import EmberTensor


def scaled_dot_product_attention(q: EmberTensor, k: EmberTensor, v: EmberTensor, causal: bool = False,
                                 mask: EmberTensor | None = None, scale: float | None = None) -> EmberTensor:
    """softmax(scale * q k^T + mask) v, heads and batch leading.

    Args:
        q: (..., H, L, head_dim). k, v: (..., H, S, head_dim).
        causal: position i sees j <= i + S - L only.
        mask: bool (true where seen) or float (added), broadcasting to (..., H, L, S).
        scale: default 1 / sqrt(head_dim).

    Returns: (..., H, L, head_dim). Source: Vaswani et al. 2017, Attention Is All You Need, eq. 1.
    """
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(f"attention: expected q (..., L, d), k (..., S, d), v (..., S, e); got {q.shape}, {k.shape}, {v.shape}")
    scores = matmul(q, swap_axes(k)) * (scale if scale is not None else 1.0 / math.sqrt(q.shape[-1]))
    low = -1e30 if q.dtype.bits >= 32 else -6e4            # finite, so that an all-masked row stays finite
    if causal:
        length, seen = q.shape[-2], k.shape[-2]
        rows, columns = arange(length, like=q), arange(seen, like=q)
        scores = where(expand_dims(columns, 0) <= expand_dims(rows + (seen - length), 1), scores, low)
    if mask is not None:
        scores = where(mask, scores, low) if mask.dtype.kind == "bool" else scores + mask
    return matmul(softmax(scores, axis=-1), v)
