"""The elementwise linear recurrence on torch: a loop over time on buffers that are written once, one launch a step.

A compiler that reads the program sees one operator instead of the unrolled loop.
"""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

#: steps whose views exist at once: a view is a Python object, and too many of them keep the garbage collector busy
BLOCK = 512


def _state_dtype(x):
    return x.dtype if x.dtype.itemsize >= 4 else torch.float32


def _scan(a, b, initial):
    kind = _state_dtype(b)
    h = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    same = b.dtype is kind
    state, buffer = initial, torch.empty_like(initial)
    for part in zip(a.split(BLOCK, 1), b.split(BLOCK, 1), h.split(BLOCK, 1)):
        for a_t, b_t, h_t in zip(*(x.unbind(1) for x in part)):
            if same:
                state = torch.addcmul(b_t, a_t, state, out=h_t)
            else:
                state = torch.addcmul(b_t.to(kind), a_t.to(kind), state, out=buffer)
                h_t.copy_(state)
    return h, state.clone()


def _grad(g, g_final, a, h, initial):
    kind = _state_dtype(g)
    d_a, d_b = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (a, g))
    same = g.dtype is kind
    if a.is_complex():
        a, h, initial = a.conj(), h.conj(), initial.conj()
    lam, length = g_final.clone(), g.shape[1]
    for start in reversed(range(0, length, BLOCK)):
        stop = min(start + BLOCK, length)
        befores = [h[:, start - 1] if start else initial, *h[:, start:stop - 1].unbind(1)]
        steps = zip(*(x[:, start:stop].unbind(1) for x in (a, g, d_a, d_b)), befores)
        for a_t, g_t, da_t, db_t, before in reversed(list(steps)):
            if same:
                torch.add(lam, g_t, out=db_t)
                torch.mul(db_t, before, out=da_t)
                torch.mul(db_t, a_t, out=lam)
            else:
                lam += g_t
                db_t.copy_(lam)
                da_t.copy_(lam * before)
                lam *= a_t
    return d_a, d_b, lam


@torch.library.custom_op("ember::linear_scan", mutates_args=())
def _scan_op(a: torch.Tensor, b: torch.Tensor, initial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _scan(a, b, initial)


@_scan_op.register_fake
def _(a, b, initial):
    return torch.empty(b.shape, dtype=b.dtype, device=b.device), torch.empty_like(initial)


@torch.library.custom_op("ember::linear_scan_grad", mutates_args=())
def _grad_op(g: torch.Tensor, g_final: torch.Tensor, a: torch.Tensor, h: torch.Tensor,
             initial: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _grad(g, g_final, a, h, initial)


@_grad_op.register_fake
def _(g, g_final, a, h, initial):
    return (torch.empty(a.shape, dtype=a.dtype, device=a.device), torch.empty(g.shape, dtype=g.dtype, device=g.device),
            torch.empty_like(g_final))


def _save(ctx, inputs, output):
    a, _, initial = inputs
    ctx.save_for_backward(a, output[0], initial)


_scan_op.register_autograd(lambda ctx, g, g_final: _grad_op(g, g_final, *ctx.saved_tensors), setup_context=_save)


def linear_scan_rows(a, b, initial):
    return _scan(a, b, initial) if get_proxy_mode() is None else _scan_op(a, b, initial)


def linear_scan_grad(g, g_final, a, h, initial):
    run = _grad if get_proxy_mode() is None else _grad_op
    return run(g, g_final, a, h, initial)


TABLE = {"linear_scan_rows": linear_scan_rows, "linear_scan_grad": linear_scan_grad}
