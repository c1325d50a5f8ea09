"""Normalisation over the last axis."""

from __future__ import annotations

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import rsqrt, square
from ember_ml.ops.reduce import mean
from ember_ml.ops.reduce import sum as total


def _leading(x):
    return tuple(range(x.ndim - 1))


def _layer_norm_grad(g, _y, x, weight, bias, *, eps):
    centred = x - mean(x, axis=-1, keepdims=True)
    r = rsqrt(mean(square(centred), axis=-1, keepdims=True) + eps)
    n = centred * r
    gn = g if weight is None else g * weight
    gx = (gn - mean(gn, axis=-1, keepdims=True) - n * mean(gn * n, axis=-1, keepdims=True)) * r
    return (gx, None if weight is None else total(g * n, axis=_leading(x)), None if bias is None else total(g, axis=_leading(x)))


@op(rule="float_promote", vjp=_layer_norm_grad)
def layer_norm(x, weight, bias, *, eps):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis.

    x: (..., D); weight, bias: (D,), None for one without. Source: Ba, Kiros and Hinton 2016, Layer Normalization.
    """
    centred = x - mean(x, axis=-1, keepdims=True)
    y = centred * rsqrt(mean(square(centred), axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm_grad(g, _y, x, weight, *, eps):
    r = rsqrt(mean(square(x), axis=-1, keepdims=True) + eps)
    n = x * r
    gn = g * weight
    return (gn - n * mean(gn * n, axis=-1, keepdims=True)) * r, total(g * n, axis=_leading(x))


@op(rule="float_promote", vjp=_rms_norm_grad)
def rms_norm(x, weight, *, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    x: (..., D); weight: (D,). Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization.
    """
    return x * rsqrt(mean(square(x), axis=-1, keepdims=True) + eps) * weight
