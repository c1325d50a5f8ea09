"""An optimiser's step on torch, for all parameters at once."""

from __future__ import annotations

import math

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode


_owners = getattr(torch._C, "_storage_Use_Count", lambda storage: 0)


def _is_alone(x) -> bool:
    """Whether no other tensor shares the memory of x (a reported metric, a buffer, what a loss kept aside), and it may be written to."""
    if get_proxy_mode() is not None or not x.is_contiguous():
        return False
    storage = x.untyped_storage()                            # a second owner
    return _owners(storage._cdata) == 2


def _adam_update(rate, t, *tensors, beta1, beta2, eps, decays, donate=False):
    n = len(tensors) // 4
    # The fused kernel reads memory in order, whatever the strides are: all of it has to be contiguous.
    gs = [g.contiguous() for g in tensors[n:2 * n]]
    ps, ms, vs = ([x if donate and _is_alone(x) else x.clone(memory_format=torch.contiguous_format) for x in tensors[i * n:(i + 1) * n]]
                  for i in (0, 2, 3))
    first = ps[0]
    # A compiler that is reading fuses the formula by itself; the fused kernel on a GPU knows neither float64 nor tensors of nothing.
    if get_proxy_mode() is not None or first.is_cuda and (first.dtype is torch.float64 or not all(p.numel() for p in ps)):
        scale1, scale2 = (-1.0 / torch.expm1(t * math.log(max(beta, 1e-300))) for beta in (beta1, beta2))
        for p, g, m, v, decay in zip(ps, gs, ms, vs, decays):
            m.lerp_(g, 1.0 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
            p.sub_(rate * (m * scale1 / ((v * scale2).sqrt() + eps) + decay * p))
        return (*ps, *ms, *vs)
    for decay in set(decays):                              # the fused kernel works in place: on copies, or on what was given away
        group = [i for i in range(n) if decays[i] == decay]
        torch._fused_adamw_(*([tree[i] for i in group] for tree in (ps, gs, ms, vs)), [], [t] * len(group), lr=rate,
                            beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=False)
    return (*ps, *ms, *vs)


def _clip_norm(*gradients, limit):
    wide = torch.float64 if any(g.dtype in (torch.float64, torch.complex128) for g in gradients) else torch.float32
    if get_proxy_mode() is None and all(g.dtype is wide for g in gradients):
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        factor = torch.clamp(limit / (norm + 1e-12), max=1.0)
        if not factor.is_cuda and factor.item() == 1.0:      # known without waiting, and nothing to multiply by
            return (*gradients, norm)
        return (*torch._foreach_mul(gradients, factor), norm)
    parts = [torch.linalg.vector_norm(g if g.is_complex() else g.to(wide)).to(wide) for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack(parts))
    factor = torch.clamp(limit / (norm + 1e-12), max=1.0)
    return (*(g * factor.to(g.dtype) for g in gradients), norm)


TABLE = {"adam_update": _adam_update, "clip_norm": _clip_norm}
