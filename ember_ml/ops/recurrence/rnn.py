"""RNN, LSTM and GRU as whole layers: the input's product and the walk over time.

torch has these itself, and its own are taken there; elsewhere, and with resets, they are `gated_scan`. Weights lie as torch's do.
"""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import zeros
from ember_ml.ops.declare import op
from ember_ml.ops.recurrence.cells import GRU, LSTM, RNN_RELU, RNN_TANH
from ember_ml.ops.recurrence.checks import check_tensors
from ember_ml.ops.recurrence.gated_scan import gated_scan
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.shape import concat, expand_dims, split, swap_axes
from ember_ml.tensor import EmberTensor


def _recurrent(weight_hh):
    return expand_dims(swap_axes(weight_hh), 0)


def _rnn(x, weight_ih, weight_hh, bias, h, relu, reset=None):
    y, (h,) = gated_scan(RNN_RELU if relu else RNN_TANH, x, _recurrent(weight_hh), (h,), weight=weight_ih, bias=bias, reset=reset)
    return y, h


@op(public="rnn")
def rnn_rows(x, weight_ih, weight_hh, bias, h, *, relu=False):
    """Native form of `rnn`, for checked shapes and without resets."""
    return _rnn(x, weight_ih, weight_hh, bias, h, relu)


def _lstm(x, weight_ih, weight_hh, bias, h, c, reset=None):
    y, (h, c) = gated_scan(LSTM, x, _recurrent(weight_hh), (h, c), weight=weight_ih, bias=bias, reset=reset)
    return y, h, c


@op(public="lstm")
def lstm_rows(x, weight_ih, weight_hh, bias, h, c):
    """Native form of `lstm`, for checked shapes and without resets."""
    return _lstm(x, weight_ih, weight_hh, bias, h, c)


def _gru(x, weight_ih, weight_hh, bias, bias_inner, h, reset=None):
    # the cell's gates are r, z, R h's part of n, x's part of n: to the third x brings nothing but the bias
    width = weight_hh.shape[1]
    rz, n = split(weight_ih, (2 * width, width), axis=0)
    if bias is not None or bias_inner is not None:
        none = zeros((width,), weight_ih.dtype, like=x)
        rz_bias, n_bias = (concat([none, none], axis=0), none) if bias is None else split(bias, (2 * width, width), axis=0)
        bias = concat([rz_bias, none if bias_inner is None else bias_inner, n_bias], axis=0)
    weight = concat([rz, n.zeros_like(), n], axis=0)
    y, (h,) = gated_scan(GRU, x, _recurrent(weight_hh), (h,), weight=weight, bias=bias, reset=reset)
    return y, h


@op(public="gru")
def gru_rows(x, weight_ih, weight_hh, bias, bias_inner, h):
    """Native form of `gru`, for checked shapes and without resets."""
    return _gru(x, weight_ih, weight_hh, bias, bias_inner, h)


def _checked(name, gates, x, weight_ih, weight_hh, biases, initial):
    """The initial state's parts. Raises ShapeError naming what does not fit."""
    check_tensors(name, x=x, weight_ih=weight_ih, weight_hh=weight_hh)
    if weight_hh.ndim != 2 or weight_hh.shape[0] != gates * weight_hh.shape[1]:
        raise ShapeError(f"{name}: expected weight_hh of shape ({gates} hidden, hidden), got {weight_hh.shape}")
    width = weight_hh.shape[1]
    if x.ndim != 3:
        raise ShapeError(f"{name}: expected x of shape (batch, length >= 1, channels), got {x.shape}")
    batch = x.shape[0]
    wanted = [("weight_ih", weight_ih, (gates * width, x.shape[2])), *biases(width)]
    wanted += [(f"initial state {i}", s, (batch, width)) for i, s in enumerate(initial) if s is not None]
    for what, t, shape in wanted:
        if t is not None and t.shape != shape:
            raise ShapeError(f"{name}: expected {what} of shape {shape}, got {t.shape}")
    kind = state_dtype(x.dtype)
    return [zeros((batch, width), kind, like=x) if s is None else s.astype(kind) for s in initial]


def rnn(x: EmberTensor, weight_ih: EmberTensor, weight_hh: EmberTensor, bias: EmberTensor | None = None,
        h: EmberTensor | None = None, *, relu: bool = False, reset: EmberTensor | None = None) -> tuple[EmberTensor, EmberTensor]:
    """(y, last h) of h_t = tanh(W_ih x_t + b + W_hh h_{t-1}), with relu in place of tanh if asked for.

    Args:
        x: (B, L, D), L >= 1. weight_ih: (H, D). weight_hh: (H, H). bias: (H,). h: (B, H), default zero.
        reset: bool (B, L): where true, the state is zero before the step.

    Returns: y (B, L, H) in x's dtype; h (B, H) in float32 or wider. Source: Elman 1990, Finding Structure in Time.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    h, = _checked("rnn", 1, x, weight_ih, weight_hh, lambda n: [("bias", bias, (n,))], [h])
    args = (x, weight_ih, weight_hh, bias, h)
    return rnn_rows(*args, relu=relu) if reset is None else _rnn(*args, relu, reset)


def lstm(x: EmberTensor, weight_ih: EmberTensor, weight_hh: EmberTensor, bias: EmberTensor | None = None,
         h: EmberTensor | None = None, c: EmberTensor | None = None, *,
         reset: EmberTensor | None = None) -> tuple[EmberTensor, EmberTensor, EmberTensor]:
    """(y, last h, last c): i, f, g, o = W_ih x_t + b + W_hh h_{t-1}; c = sig(f) c + sig(i) tanh(g); h = sig(o) tanh(c).

    Args:
        x: (B, L, D), L >= 1. weight_ih: (4 H, D). weight_hh: (4 H, H). bias: (4 H,). h, c: (B, H), default zero.
        reset: bool (B, L): where true, the state is zero before the step.

    Returns: y (B, L, H) in x's dtype; h and c (B, H) in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    Source: Hochreiter and Schmidhuber 1997; Gers et al. 2000, for the forget gate.
    """
    h, c = _checked("lstm", 4, x, weight_ih, weight_hh, lambda n: [("bias", bias, (4 * n,))], [h, c])
    args = (x, weight_ih, weight_hh, bias, h, c)
    return lstm_rows(*args) if reset is None else _lstm(*args, reset)


def gru(x: EmberTensor, weight_ih: EmberTensor, weight_hh: EmberTensor, bias: EmberTensor | None = None,
        bias_inner: EmberTensor | None = None, h: EmberTensor | None = None, *,
        reset: EmberTensor | None = None) -> tuple[EmberTensor, EmberTensor]:
    """(y, last h): r, z, n = W_ih x_t + b; r and z add theirs of W_hh h; h = (1 - sig(z)) n' + sig(z) h with

        n' = tanh(n + sig(r) (W_hn h + bias_inner))

    Args:
        x: (B, L, D), L >= 1. weight_ih: (3 H, D). weight_hh: (3 H, H). bias: (3 H,). bias_inner: (H,). h: (B, H), default zero.
        reset: bool (B, L): where true, the state is zero before the step.

    Returns: y (B, L, H) in x's dtype; h (B, H) in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    Source: Cho et al. 2014, in the form of cuDNN and torch, where r acts after the product.
    """
    h, = _checked("gru", 3, x, weight_ih, weight_hh,
                  lambda n: [("bias", bias, (3 * n,)), ("bias_inner", bias_inner, (n,))], [h])
    args = (x, weight_ih, weight_hh, bias, bias_inner, h)
    return gru_rows(*args) if reset is None else _gru(*args, reset)
