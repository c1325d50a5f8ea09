"""Short convolutions, computed directly; the long ones are in `fftconv`."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.declare import op
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, pad
from ember_ml.tensor import EmberTensor


def _delay(x, steps):
    """x later by `steps` along the last axis, zeros entering, same length."""
    if steps == 0:
        return x
    return cut(pad(x, ((0, 0),) * (x.ndim - 1) + ((steps, 0),)), 0, x.shape[-1], axis=-1)


def _advance(x, steps):
    """x earlier by `steps` along the last axis, zeros entering, same length."""
    if steps == 0:
        return x
    return cut(pad(x, ((0, 0),) * (x.ndim - 1) + ((0, steps),)), steps, x.shape[-1] + steps, axis=-1)


def _grad(g, _y, x, weight, bias=None):
    taps = weight.shape[-1]
    gx, gw = None, []
    for j in range(taps):                                  # tap j looks back taps - 1 - j steps
        back = taps - 1 - j
        term = _advance(g, back) * expand_dims(weight[:, j], -1)
        gx = term if gx is None else gx + term
        gw.append(total(g * _delay(x, back), axis=(0, 2)))
    return gx, concat([expand_dims(w, -1) for w in gw], axis=-1), None if bias is None else total(g, axis=(0, 2))


@op(rule="promote", vjp=_grad)
def depthwise_rows(x, weight, bias=None):
    """Native form of `short_conv`, for checked shapes."""
    taps = weight.shape[-1]
    y = None
    for j in range(taps):
        term = _delay(x, taps - 1 - j) * expand_dims(weight[:, j], -1)
        y = term if y is None else y + term
    return y if bias is None else y + expand_dims(bias, -1)


def short_conv(x: EmberTensor, weight: EmberTensor, bias: EmberTensor | None = None) -> EmberTensor:
    """Causal depthwise convolution of few taps: y[b, d, t] = bias[d] + sum_j weight[d, j] x[b, d, t - (K - 1) + j].

    Args:
        x: (B, D, L), channels before time, so that rows are contiguous in time.
        weight: (D, K), the last tap on the present. bias: (D,) or None.

    Returns: (B, D, L).
    """
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[1]:
        raise ShapeError(f"short_conv: expected x (B, D, L) and weight (D, K), got {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != (x.shape[1],):
        raise ShapeError(f"short_conv: expected bias of shape ({x.shape[1]},), got {bias.shape}")
    return depthwise_rows(x, weight, bias)
