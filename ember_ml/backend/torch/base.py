"""The op table of torch, on every device it has, and what torch spells or does differently from the op's definition."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.torch.operator import untraced
from ember_ml.tensor.common import dtypes as dt
from ember_ml.tensor.common.index import fill


def _axes(x, axis):
    return tuple(range(x.ndim)) if axis is None else axis


def _reduce(fn):
    def call(x, axis=None, keepdims=False):
        axis = _axes(x, axis)
        return fn(x, axis, keepdim=keepdims) if axis != () else fn(x.unsqueeze(0), 0)     # no axes: of each element alone
    return call


#: torch adds and multiplies none of these: they are formed as int64, whose lower bits are theirs
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


#: dtype of a sum or product of each dtype
_ACCUMULATED = {getattr(torch, d.name): getattr(torch, dt.accumulator(d).name) for d in dt.ALL}


def _formed_in(x, dtype):
    """(dtype of a sum or product, dtype that torch forms it in)."""
    native = _ACCUMULATED[x.dtype] if dtype is None else getattr(torch, dt.dtype(dtype).name)
    return native, torch.int64 if native in _UNSIGNED else native


def _sum(x, axis=None, dtype=None, keepdims=False):
    if dtype is None and x.dtype.is_floating_point and axis != ():
        return torch.sum(x, _axes(x, axis), keepdim=keepdims)
    native, wide = _formed_in(x, dtype)
    return torch.sum(x.to(wide), _axes(x, axis), keepdim=keepdims, dtype=wide).to(native) if axis != () else x.to(native)


def _place_of(fn):
    def call(x, axis=None, keepdims=False):
        if axis is None:
            place = fn(x).to(torch.int32)
            return place.reshape((1,) * x.ndim) if keepdims else place
        return fn(x, axis, keepdim=keepdims).to(torch.int32)
    return call


def _prod(x, axis=None, dtype=None, keepdims=False):
    """torch.prod takes one axis: the others are brought behind it."""
    native, wide = _formed_in(x, dtype)
    axes = sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else _axes(x, axis)))
    kept = [i for i in range(x.ndim) if i not in axes]
    flat = x.permute((*kept, *axes)).reshape([x.shape[i] for i in kept] + [math.prod(x.shape[i] for i in axes)])
    y = torch.prod(flat.to(wide), -1, dtype=wide).to(native)
    return y.reshape([1 if i in axes else n for i, n in enumerate(x.shape)]) if keepdims else y


def _running(fn):
    def call(x, axis=0):
        wide = torch.int64 if x.dtype in _UNSIGNED else x.dtype
        return fn(x.to(wide), axis, dtype=wide).to(x.dtype)
    return call


def _pad(x, width):
    flat = [n for pair in reversed(width) for n in pair]
    return F.pad(x, flat)


def _slices(index, tensors):
    """The filled index; torch wants int64 index tensors."""
    return fill(index, [t if t.dtype is torch.bool else t.long() for t in tensors])


def _get_at(x, *tensors, index):
    x, index = _flip_negative_steps(x, index)
    return x[_slices(index, tensors)]


def _flip_negative_steps(x, index):
    """torch refuses slices with a negative step: the axis is turned round instead."""
    if not any(isinstance(part, slice) and (part.step or 1) < 0 for part in index):
        return x, index
    out, axis = [], 0
    used = sum(part is not None and part is not Ellipsis for part in index)
    for part in index:
        if part is Ellipsis:
            axis += x.ndim - used
        elif part is not None:
            if isinstance(part, slice) and (part.step or 1) < 0:
                n = x.shape[axis]
                picked = range(n)[part]
                x = torch.flip(x, (axis,))
                part = slice(n - 1 - picked[0], n - picked[-1], -picked.step) if len(picked) else slice(0, 0)
            axis += 1
        out.append(part)
    return x, tuple(out)


def _set_at(x, values, *tensors, index):
    out = x.clone()
    if any(isinstance(part, slice) and (part.step or 1) < 0 for part in index):
        where = _get_at(torch.arange(x.numel(), device=x.device).reshape(x.shape), *tensors, index=index)
        return out.reshape(-1).index_put((where.reshape(-1),), values.expand(where.shape).reshape(-1)).reshape(x.shape)
    out[_slices(index, tensors)] = values
    return out


def _add_at(x, values, *tensors, index):
    where = _get_at(torch.arange(x.numel(), device=x.device).reshape(x.shape), *tensors, index=index)
    return x.reshape(-1).index_add(0, where.reshape(-1), values.expand(where.shape).reshape(-1)).reshape(x.shape)


def _take(x, indices, axis=0):
    if axis == 0 and x.ndim == 2 and not x.is_complex():     # torch's embedding has no gradient for complex numbers
        return F.embedding(indices.long(), x)
    out = torch.index_select(x, axis, indices.long().reshape(-1))
    return out.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1:])


def _scatter_add(x, indices, updates, axis=0):
    rows = updates.reshape(x.shape[:axis] + (indices.numel(),) + x.shape[axis + 1:])
    return torch.index_add(x, axis, indices.long().reshape(-1), rows.to(x.dtype))


def _bounded_indices(indices, length):
    """The remainder counts negative ones from the end, once those before the first are moved there."""
    return indices.clamp(-length, length - 1).remainder(max(length, 1))


def _argsort(x, axis=-1, descending=False):
    return torch.argsort(x, dim=axis, descending=descending, stable=True).to(torch.int32)


#: numbers up to which, and slots from which on, one sort is cheaper than a search for each slot
_FEW, _MANY_SLOTS = 4096, 17


def topk_indices(x, *, k=2):
    """By a sort, or by one search after the other where there are many numbers and few slots."""
    if x.numel() == 0:
        return x.new_zeros((*x.shape[:-1], k), dtype=torch.int32)
    if not x.is_floating_point():
        return _argsort(x, descending=True)[..., :k]
    x = x.float() if x.element_size() == 2 else x
    least = torch.finfo(x.dtype).min
    x = torch.nan_to_num(x, nan=least, posinf=math.inf, neginf=least)
    if x.numel() <= _FEW or k >= _MANY_SLOTS:
        return torch.sort(x, dim=-1, descending=True, stable=True).indices[..., :k].to(torch.int32)
    found = []
    for _ in range(k):
        found.append(torch.argmax(x, -1, keepdim=True))
        x = x.scatter(-1, found[-1], -math.inf)
    return torch.cat(found, -1).to(torch.int32)


def _rope(x, positions, rates, *, interleaved):
    dims = rates.shape[0]
    if dims < x.shape[-1]:
        return torch.cat([_rope(x[..., :dims], positions, rates, interleaved=interleaved), x[..., dims:]], -1)
    angles = positions.reshape(positions.shape[0], 1, positions.shape[1], 1).to(rates.dtype) * rates
    crossed = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else x.roll(dims // 2, -1)
    return torch.addcmul(x * torch.cos(angles), crossed, torch.sin(angles)).to(x.dtype)


def _depthwise(x, weight, bias=None, anticausal=False, silu=False, channels_last=False):
    if silu or channels_last:                              # kernels' options, for what they do not serve
        y = _depthwise(x, weight, bias, anticausal)
        y = F.silu(y) if silu else y
        return y.mT if channels_last else y
    taps, length = weight.shape[-1], x.shape[-1]
    # Where channels lie together a pass over rows for each tap is cheaper; 16 bits would round at each of them.
    if x.stride(1) == 1 and x.element_size() > 2 and taps <= 8 and not x.is_cuda:
        rows, weight = x.mT, weight.mT.contiguous()
        y = rows * weight[-1] if bias is None else torch.addcmul(bias, rows, weight[-1])
        for away in range(1, min(taps, length)):
            to, seen = y[:, away:], rows[:, :length - away]
            if anticausal:
                to, seen = y[:, :length - away], rows[:, away:]
            to.addcmul_(seen, weight[taps - 1 - away])
        return y.mT
    before, after = (0, taps - 1) if anticausal else (taps - 1, 0)
    weight = torch.flip(weight, (1,)) if anticausal else weight
    return F.conv1d(F.pad(x, (before, after)), weight.unsqueeze(1), bias, groups=x.shape[1])


def _transform(fn):
    def call(x, n=None, axis=-1, norm="backward"):
        if x.numel() == 0:                               # MKL refuses a batch of nothing
            form = fn(torch.empty_like(x, device="meta"), n, axis)
            return torch.zeros(form.shape, dtype=form.dtype, device=x.device)
        return fn(x, n, axis, norm)
    return call


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


def _rms_norm(x, weight, eps):
    """torch's own where a gradient is asked for; on a CPU it is a chain of ten small operations, of which five do."""
    if not x.is_cpu or x.element_size() < 4 or get_proxy_mode() is not None or torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return F.rms_norm(x, weight.shape, weight, eps)
    root = torch.linalg.vector_norm(x, 2, -1, True)
    return (x * torch.addcmul(_number(eps, x.dtype), root, root, value=1.0 / x.shape[-1]).rsqrt_()).mul_(weight)


@lru_cache(maxsize=64)
def _number(value: float, dtype) -> torch.Tensor:
    """For operations that take tensors alone."""
    with untraced():
        return torch.tensor(value, dtype=dtype)


def _attention(q, k, v, mask=None, *, causal, scale):
    """torch's own. Its causal mask begins at the first key, ours ends at the last: they differ where there are more keys than queries."""
    length, keys = q.shape[-2], k.shape[-2]
    if causal and (length != keys or mask is not None):
        low = torch.full((length, keys), -1e30 if q.dtype.itemsize >= 4 else -6e4, dtype=q.dtype, device=q.device)
        low = low.triu(keys - length + 1)
        mask, causal = low if mask is None else low + mask, False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale,
                                          enable_gqa=q.shape[-3] != k.shape[-3])


def matmul(x, y):
    """torch.matmul; for integers on a GPU, where cuBLAS has none, the sum of products."""
    if x.is_floating_point() or x.is_complex() or not x.is_cuda:
        return torch.matmul(x, y)
    return integer_matmul(x, y)


def unit_inverse(a):
    """By substitution, in float32 at least: torch's solver has no 16-bit form."""
    wide = a.to(torch.promote_types(a.dtype, torch.float32))
    one = torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)
    return torch.linalg.solve_triangular(one - wide, one.expand(a.shape), upper=False, unitriangular=True).to(a.dtype)


def linear(x, weight, bias=None):
    """torch's own; for integers, which it has not everywhere, by `matmul`."""
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    y = matmul(x, weight.mT)
    return y if bias is None else y + bias


def integer_matmul(x, y):
    row, column = x.dim() == 1, y.dim() == 1
    x, y = x[None] if row else x, y[:, None] if column else y
    out = (x[..., :, :, None] * y[..., None, :, :]).sum(-2, dtype=x.dtype)
    out = out.squeeze(-2) if row else out
    return out.squeeze(-1) if column else out


TABLE = {
    "sum": _sum, "mean": _reduce(torch.mean), "max": _reduce(torch.amax), "min": _reduce(torch.amin), "argmax": _place_of(torch.argmax),
    "argmin": _place_of(torch.argmin), "prod": _prod, "cumprod": _running(torch.cumprod),
    "all": _reduce(lambda x, axis, keepdim=False: torch.all(x.bool(), axis, keepdim=keepdim)),
    "any": _reduce(lambda x, axis, keepdim=False: torch.any(x.bool(), axis, keepdim=keepdim)),
    "logsumexp": lambda x, axis=-1, keepdims=False: torch.logsumexp(x, _axes(x, axis), keepdim=keepdims),
    "cumsum": _running(torch.cumsum),
    "cummax": lambda x, axis=0: torch.cummax(x, axis).values,
    "cumlogsumexp": lambda x, axis=0: torch.logcumsumexp(x, axis),
    "reshape": torch.reshape, "permute_dims": torch.permute, "broadcast_to": torch.broadcast_to,
    "concat_all": lambda *xs, axis=0: torch.cat(xs, axis), "pad": _pad,
    "cut": lambda x, start, stop, axis=0: torch.narrow(x, axis, start, stop - start),
    "split_all": lambda x, sizes, axis=0: tuple(torch.split_with_sizes(x, sizes, axis)),
    "flip": lambda x, axis=None: torch.flip(x, (axis,) if isinstance(axis, int) else _axes(x, axis)), "matmul": matmul,
    "linear_rows": linear,
    "unit_inverse": unit_inverse,
    "take_axis": _take, "scatter_add": _scatter_add,
    "gather_along": lambda x, i, axis: torch.take_along_dim(x, i.long(), axis),
    "put_add_along_axis": lambda x, i, u, axis: torch.scatter_add(x, axis, i.long(), u.to(x.dtype)),
    "get_at": _get_at, "set_at": _set_at, "add_at": _add_at, "argsort": _argsort, "bounded_indices": _bounded_indices,
    "topk_indices": topk_indices, "rope": _rope,
    "fft": _transform(torch.fft.fft), "ifft": _transform(torch.fft.ifft), "rfft": _transform(torch.fft.rfft),
    "irfft": _transform(torch.fft.irfft),
    "sigmoid": torch.sigmoid, "relu": torch.relu, "silu": F.silu, "gelu": F.gelu, "softplus": F.softplus,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softmax": lambda x, axis=-1: torch.softmax(x, axis), "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "attention_rows": _attention,
    "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "rms_norm": _rms_norm,
    "cross_entropy_rows": lambda x, labels: F.cross_entropy(
        x.reshape(-1, x.shape[-1]), labels.long().reshape(-1), reduction="none").reshape(labels.shape),
    "conv1d_rows": lambda x, w, b=None, stride=1, dilation=1, groups=1: torch.nn.functional.conv1d(x, w, b, stride, 0, dilation, groups),
    "conv2d_rows": lambda x, w, b=None, stride=(1, 1), dilation=(1, 1), groups=1: F.conv2d(x, w, b, stride, 0, dilation, groups),
    "depthwise_rows": _depthwise, "adam_update": _adam_update, "clip_norm": _clip_norm,
}
