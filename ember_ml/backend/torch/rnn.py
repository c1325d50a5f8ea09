"""torch's own RNN, LSTM and GRU, with its gradients; half precision is computed in float32, as elsewhere."""

from __future__ import annotations

import torch


def _run(fn, x, state, weight_ih, weight_hh, bias, bias_hh):
    """One layer, batch first. torch adds two biases; Ember has one where their sum is all that counts."""
    kind = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    weights = [weight_ih, weight_hh]
    has_bias = bias is not None or bias_hh is not None
    if has_bias:
        none = torch.zeros(weight_hh.shape[0], dtype=kind, device=x.device)
        weights += [none if b is None else b for b in (bias, bias_hh)]
    x_wide, *weights = (w.to(kind).contiguous() for w in (x, *weights))      # cuDNN refuses what is not contiguous
    state = [s.to(kind).unsqueeze(0).contiguous() for s in state]
    y, *after = fn(x_wide, tuple(state) if len(state) > 1 else state[0], weights, has_bias, 1, 0.0,
                   torch.is_grad_enabled(), False, True)
    return (y.to(x.dtype), *(s.squeeze(0) for s in after))


def rnn_rows(x, weight_ih, weight_hh, bias, h, relu=False):
    return _run(torch.rnn_relu if relu else torch.rnn_tanh, x, [h], weight_ih, weight_hh, bias, None)


def lstm_rows(x, weight_ih, weight_hh, bias, h, c):
    return _run(torch.lstm, x, [h, c], weight_ih, weight_hh, bias, None)


def gru_rows(x, weight_ih, weight_hh, bias, bias_inner, h):
    if bias_inner is not None:
        still = torch.zeros(2 * bias_inner.shape[0], dtype=bias_inner.dtype, device=bias_inner.device)
        bias_inner = torch.cat((still, bias_inner))
    return _run(torch.gru, x, [h], weight_ih, weight_hh, bias, bias_inner)


TABLE = {"rnn_rows": rnn_rows, "lstm_rows": lstm_rows, "gru_rows": gru_rows}
