"""Activations inside of experts on torch, with gates, and their gradients without autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_aten = torch.ops.aten


def _gelu(approximate):
    return (lambda z: F.gelu(z, approximate=approximate),
            lambda z, da: (F.gelu(z, approximate=approximate), _aten.gelu_backward(da, z, approximate=approximate)))


def _with_slope(fn, backward):
    def both(z, da):
        a = fn(z)
        return a, backward(da, a)
    return fn, both


#: name -> (value, value and gradient for the value's gradient)
ACTIVATIONS = {
    "identity": (lambda z: z, lambda z, da: (z, da)),
    "relu": _with_slope(torch.relu, lambda da, a: _aten.threshold_backward(da, a, 0)),
    "tanh": _with_slope(torch.tanh, _aten.tanh_backward), "sigmoid": _with_slope(torch.sigmoid, _aten.sigmoid_backward),
    "silu": (F.silu, lambda z, da: (F.silu(z), _aten.silu_backward(da, z))),
    "gelu": _gelu("none"), "gelu_tanh": _gelu("tanh"),
}


def activate(h, activation, glu):
    act = ACTIVATIONS[activation][0]
    if not glu:
        return act(h)
    gate, up = h.chunk(2, 1)
    return gate * up if activation == "identity" else act(gate).mul_(up)


def activation_backward(da, h, a, dh, activation, glu):
    """Fills the activations a of h, and dh with their gradients for da."""
    inner = a.shape[1]
    gate, up = h[:, :inner], h[:, inner:]
    if glu and activation == "silu":                       # every pass writes where its result belongs
        torch.mul(da, up, out=a)
        _aten.silu_backward.grad_input(a, gate, grad_input=dh[:, :inner])
        _aten.silu.out(gate, out=a)
        torch.mul(a, da, out=dh[:, inner:])
        a.mul_(up)
        return
    act, dh[:, :inner] = ACTIVATIONS[activation][1](gate, da * up if glu else da)
    if glu:
        torch.mul(act, da, out=dh[:, inner:])
        act = act * up
    a[...] = act
