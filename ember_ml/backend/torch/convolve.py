"""The long convolution alone on torch: `fftconv`'s blocks without gates, as operators that compilers see through and derive."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy.right_angle import filters_of
from ember_ml.backend.torch.fftconv import backward, forward


@torch.no_grad()
def _rows(x, k, D, k_reverse):
    y = forward(x, k, k_reverse=k_reverse)
    return y if D is None else y.addcmul_(x, D[:, None])


@torch.no_grad()
def _grad(g, x, k, D, k_reverse):
    dx, dk, *_, dk_reverse = backward(g, x, k, k_reverse=k_reverse)
    dD = None if D is None else (g * x).sum((0, 2))
    return [t for t in (dx if D is None else dx.addcmul_(g, D[:, None]), dk, dD, dk_reverse) if t is not None]


@torch.library.custom_op("ember::convolve_rows", mutates_args=())
def _rows_op(x: torch.Tensor, k: torch.Tensor, D: torch.Tensor | None, k_reverse: torch.Tensor | None) -> torch.Tensor:
    return _rows(x, k, D, k_reverse)


@_rows_op.register_fake
def _(x, k, D, k_reverse):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("ember::convolve_grad", mutates_args=())
def _grad_op(g: torch.Tensor, x: torch.Tensor, k: torch.Tensor, D: torch.Tensor | None,
             k_reverse: torch.Tensor | None) -> list[torch.Tensor]:
    return _grad(g, x, k, D, k_reverse)


@_grad_op.register_fake
def _(g, x, k, D, k_reverse):
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, k, D, k_reverse) if t is not None]


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _rows_grad(ctx, g):
    saved = ctx.saved_tensors                            # once: a checkpoint lets them go when they were read
    found = iter(_grad_op(g, *saved))
    return tuple(None if t is None else next(found) for t in saved)


_rows_op.register_autograd(_rows_grad, setup_context=_save)


def convolve_rows(x, k, D=None, k_reverse=None):
    if get_proxy_mode() is None:
        return _rows(x, k, D, k_reverse)
    return _rows_op(x, filters_of(k, k_reverse)[0], D, filters_of(k, k_reverse)[1])


def convolve_grad(g, x, k, D=None, k_reverse=None):
    if get_proxy_mode() is None:
        return tuple(_grad(g, x, k, D, k_reverse))
    found = iter(_grad_op(g, x, filters_of(k, k_reverse)[0], D, filters_of(k, k_reverse)[1]))
    found = [next(found) if t is not None else None for t in (x, k, D, k_reverse)]
    wanted = (True, not hasattr(k, "spectrum"), True, True)
    return tuple(t for t, keep in zip(found, wanted) if keep and t is not None)


TABLE = {"convolve_rows": convolve_rows, "convolve_grad": convolve_grad}
