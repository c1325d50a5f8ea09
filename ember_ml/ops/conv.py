"""Convolutions of few taps; the long ones are in `fftconv`."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.kernels import SHORT_CONV, SHORT_CONV_GRAD
from ember_ml.ops.activation import silu as silu_of
from ember_ml.ops.activation import silu_slope
from ember_ml.ops.creation import zeros_like
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.ops.elementwise import where
from ember_ml.ops.fftconv import fftconv_grad, fftconv_rows
from ember_ml.ops.kernel import launches
from ember_ml.ops.linear import matmul
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, flip, pad, reshape, stack, swap_axes
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


#: taps beyond which one transform is cheaper than a pass over the input for each tap
DIRECT_TAPS = 12


def _wide(dtype):
    return dt.float32 if dtype.bits < 32 else dtype


@op(kernel=SHORT_CONV_GRAD)
def depthwise_grad(g, x, weight, bias=None, *, anticausal=False, silu=False):
    """Gradients of `depthwise_rows` for that of y (B, D, L): in x, as (B, L, D), where the projection's gradient goes on along channels; and,
    in float32 or wider, in weight and bias, None without one.
    """
    if silu:                                               # the convolution's output is needed again
        g = g * silu_slope(depthwise_rows(x, weight, bias, anticausal=anticausal))
    taps, length, gw, kind = weight.shape[-1], x.shape[-1], [], _wide(x.dtype)
    late, early = (t.astype(kind) for t in ((x, g) if anticausal else (g, x)))
    d_bias = None if bias is None else total(g.astype(kind), axis=(0, 2))
    if taps > DIRECT_TAPS:
        dx, dk, *_ = fftconv_grad(late, early, flip(weight.astype(kind), axis=-1))
        dx = depthwise_rows(g, weight) if anticausal else dx.astype(x.dtype)
        return swap_axes(dx), flip(dk, axis=-1), d_bias
    for j in range(taps):                                  # tap j meets inputs taps - 1 - j steps away
        away = min(taps - 1 - j, length)
        gw.append(total(cut(late, away, length, axis=-1) * cut(early, 0, length - away, axis=-1), axis=(0, 2)))
    dx = depthwise_rows(g, weight, anticausal=not anticausal)
    return swap_axes(dx), concat([expand_dims(w, -1) for w in gw], axis=-1), d_bias


def _rule(g, _y, x, weight, bias=None, *, anticausal=False, silu=False, channels_last=False):
    dx, *rest = depthwise_grad(swap_axes(g) if channels_last else g, x, weight, bias, anticausal=anticausal, silu=silu)
    return swap_axes(dx), *rest


@op(public="short_conv", rule="promote", vjp=_rule, owns_gradient=True, kernel=SHORT_CONV)
def depthwise_rows(x, weight, bias=None, *, anticausal=False, silu=False, channels_last=False):
    """Native form of `short_conv`, for checked shapes and one segment; anticausal looks forward in time: it is the adjoint."""
    y = _convolved(x, weight, anticausal)
    y = y if bias is None else y + expand_dims(bias, -1)
    y = silu_of(y) if silu else y
    return swap_axes(y) if channels_last else y


def _convolved(x, weight, anticausal):
    taps, length, y = weight.shape[-1], x.shape[-1], None
    if taps > DIRECT_TAPS:
        k = flip(weight, axis=-1).astype(_wide(x.dtype))
        return fftconv_rows(x, cut(k, 0, 1, axis=-1).zeros_like(), k_reverse=k) if anticausal else fftconv_rows(x, k)
    still = ((0, 0),) * (x.ndim - 1)
    wide = pad(x, (*still, (0, taps - 1) if anticausal else (taps - 1, 0)))
    for j in range(taps):
        start = taps - 1 - j if anticausal else j
        term = cut(wide, start, start + length, axis=-1) * expand_dims(weight[:, j], -1)
        y = term if y is None else y + term
    return y


def _within(x, weight, bias, segments):
    """`short_conv` tap by tap, each without what it would see of another segment."""
    taps, length, y = weight.shape[-1], x.shape[-1], None
    for away in range(min(taps, length)):
        tap = expand_dims(weight[:, taps - 1 - away], -1)
        term = where(expand_dims(same_segment(segments, away), 1), earlier_by(x, away, -1), 0.0) * tap if away else x * tap
        y = term if y is None else y + term
    return y if bias is None else y + expand_dims(bias, -1)


def earlier_by(x: EmberTensor, steps: int, axis: int) -> EmberTensor:
    """x moved `steps` on along `axis`, at most its length, with zeros in front."""
    axis %= x.ndim
    length = x.shape[axis]
    front = tuple((steps, 0) if i == axis else (0, 0) for i in range(x.ndim))
    return cut(pad(x, front), 0, length, axis=axis) if steps else x


def same_segment(segments: EmberTensor, away: int) -> EmberTensor:
    """bool (B, L): whether the position `away` before (negative: after) each is there and of the same segment; segments (B, L), from 0 on."""
    moved = segments + 1                                     # so that what lies outside, 0, is none
    there = earlier_by(moved, away, 1) if away >= 0 else flip(earlier_by(flip(moved, axis=1), -away, 1), axis=1)
    return moved == there


def short_conv(x: EmberTensor, weight: EmberTensor, bias: EmberTensor | None = None,
               segments: EmberTensor | None = None, *, silu: bool = False, channels_last: bool = False) -> EmberTensor:
    """Causal depthwise convolution of few taps: y[b, d, t] = act(bias[d] + sum_j weight[d, j] x[b, d, t - (K - 1) + j]).

    Args:
        x: (B, D, L), channels before time, so that rows are contiguous in time.
        weight: (D, K), the last tap on the present. bias: (D,) or None.
        segments: (B, L), integers from 0 on: an output sees positions of its own segment alone. None for one segment.
        silu: act is the silu; else nothing.
        channels_last: y is (B, L, D), which is what x's projection was; for what goes on along channels.

    Returns: (B, D, L), or (B, L, D).
    """
    expect_tensors("short_conv", {"bias": bias, "segments": segments}, x=x, weight=weight)
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[1] or weight.shape[1] == 0:
        raise ShapeError(f"short_conv: expected x (B, D, L) and weight (D, K), K >= 1, got {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != (x.shape[1],):
        raise ShapeError(f"short_conv: expected bias of shape ({x.shape[1]},), got {bias.shape}")
    if segments is not None and segments.shape != (x.shape[0], x.shape[2]):
        raise ShapeError(f"short_conv: expected segments of shape (batch, length) = {(x.shape[0], x.shape[2])}, got {segments.shape}")
    if x.size == 0:
        return zeros_like(swap_axes(x) if channels_last else x)
    if segments is None and launches(x, "short_conv"):
        return depthwise_rows(x, weight, bias, silu=silu, channels_last=channels_last)
    y = depthwise_rows(x, weight, bias) if segments is None else _within(x, weight, bias, segments)
    y = silu_of(y) if silu else y
    return swap_axes(y) if channels_last else y


@op(public="conv1d", rule="promote")
def conv1d_rows(x, weight, bias=None, *, stride=1, dilation=1, groups=1):
    """Native form of `conv1d`, for checked shapes and without padding."""
    (batch, channels, length), (out, _, taps) = x.shape, weight.shape
    places = (length - dilation * (taps - 1) - 1) // stride + 1
    windows = [cut(x, j * dilation, j * dilation + (places - 1) * stride + 1, axis=-1) for j in range(taps)]
    windows = windows if stride == 1 else [w[:, :, ::stride] for w in windows]
    columns = reshape(stack(windows, axis=2), (batch, groups, channels // groups * taps, places))
    y = reshape(matmul(reshape(weight, (groups, out // groups, -1)), columns), (batch, out, places))
    return y if bias is None else y + expand_dims(bias, -1)


def conv1d(x: EmberTensor, weight: EmberTensor, bias: EmberTensor | None = None, *, stride: int = 1,
           padding: int | tuple[int, int] = 0, dilation: int = 1, groups: int = 1) -> EmberTensor:
    """y[b, o, t] = bias[o] + sum_{c, j} weight[o, c, j] x[b, c, t stride + j dilation - padding], zero outside: torch's Conv1d.

    Args:
        x: (B, C, L). weight: (O, C / groups, K). bias: (O,) or None.
        padding: zeros before and after, one number or two; (K - 1, 0) makes it causal.
        groups: blocks of channels that are mapped by themselves; they divide C and O.

    Returns: (B, O, (L + padding before and after - dilation (K - 1) - 1) // stride + 1).

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    before, after = padding if isinstance(padding, tuple) else (padding, padding)
    if x.ndim != 3 or weight.ndim != 3 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ShapeError(f"conv1d: expected x (B, C, L) and weight (O, C / groups, K) with groups = {groups} dividing O, got {x.shape} and "
                         f"{weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"conv1d: expected bias of shape {weight.shape[:1]}, got {bias.shape}")
    if x.shape[2] + before + after < dilation * (weight.shape[2] - 1) + 1:
        raise ShapeError(f"conv1d: expected at least {dilation * (weight.shape[2] - 1) + 1} positions with the padding, got "
                         f"{x.shape[2]} + {before} + {after}")
    x = pad(x, ((0, 0), (0, 0), (before, after))) if before or after else x
    return conv1d_rows(x, weight, bias, stride=stride, dilation=dilation, groups=groups)
