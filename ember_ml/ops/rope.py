"""Rotary positions."""

from __future__ import annotations

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import cos, sin
from ember_ml.ops.shape import concat, flip, reshape, split


@op()
def rope(x, positions, rates, *, interleaved):
    """Pairs of channels turned by their position: (a, b) becomes (a cos t - b sin t, b cos t + a sin t), t = position * rate.

    x: (B, H, L, head_dim). positions: integers (B, L) or (1, L). rates: (dims,), radians a position for each of the first dims
    channels, which turn; others stay. Both channels of a pair have the same rate, the first with a minus sign, since its partner is taken
    away. interleaved: pairs are neighbours, else channel i and channel i + dims / 2. Angles are formed in rates' dtype.

    Source: Su et al. 2021, RoFormer, eq. 34.
    """
    dims = rates.shape[0]
    if dims < x.shape[-1]:
        turning, rest = split(x, (dims, x.shape[-1] - dims), axis=-1)
        return concat([rope(turning, positions, rates, interleaved=interleaved), rest], axis=-1)
    angles = reshape(positions, (positions.shape[0], 1, positions.shape[1], 1)).astype(rates.dtype) * rates
    if interleaved:
        crossed = reshape(flip(reshape(x, (*x.shape[:-1], dims // 2, 2)), axis=-1), x.shape)
    else:
        a, b = split(x, 2, axis=-1)
        crossed = concat([b, a], axis=-1)
    return (x * cos(angles) + crossed * sin(angles)).astype(x.dtype)
