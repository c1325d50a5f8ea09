"""The op table of torch, on every device it has, and what torch spells or does differently from the op's definition."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.tensor.common.index import fill


def _axes(x, axis):
    return tuple(range(x.ndim)) if axis is None else axis


def _reduce(fn):
    def call(x, axis=None, keepdims=False):
        axis = _axes(x, axis)
        return fn(x, axis, keepdim=keepdims) if axis != () else fn(x.reshape(1), 0).reshape(())
    return call


def _sum(x, axis=None, keepdims=False):
    small = {torch.bool: torch.int32, torch.int8: torch.int32, torch.int16: torch.int32, torch.uint8: torch.uint32}
    dtype = small.get(x.dtype, x.dtype)
    if dtype is torch.uint32:                            # torch cannot add uint32: sum wider, then narrow
        return torch.sum(x.to(torch.int64), _axes(x, axis), keepdim=keepdims).to(dtype)
    return torch.sum(x, _axes(x, axis), keepdim=keepdims, dtype=dtype)


def _argmax(x, axis=None, keepdims=False):
    if axis is None:
        return torch.argmax(x).to(torch.int32)
    return torch.argmax(x, axis, keepdim=keepdims).to(torch.int32)


def _floats_only(fn):
    """Ops that torch would apply to integers or bools as something else than defined."""
    return lambda x: fn(x) if x.dtype.is_floating_point or x.dtype.is_complex else x


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


def _argsort(x, axis=-1, descending=False):
    return torch.argsort(x, dim=axis, descending=descending, stable=True).to(torch.int32)


def _depthwise(x, weight, bias=None, anticausal=False):
    taps = weight.shape[-1]
    wide = F.pad(x, (0, taps - 1) if anticausal else (taps - 1, 0))
    weight = torch.flip(weight, (1,)) if anticausal else weight
    return F.conv1d(wide, weight.unsqueeze(1), bias, groups=x.shape[1])


def _transform(fn):
    def call(x, n=None, axis=-1):
        if x.numel() == 0:                               # MKL refuses a batch of nothing
            form = fn(torch.empty_like(x, device="meta"), n, axis)
            return torch.zeros(form.shape, dtype=form.dtype, device=x.device)
        return fn(x, n, axis)
    return call


def _adam_update(rate, t, *tensors, beta1, beta2, eps, decays):
    n = len(tensors) // 4
    # The fused kernel reads memory in order, whatever the strides are: all of it has to be contiguous.
    gs = [g.contiguous() for g in tensors[n:2 * n]]
    ps, ms, vs = ([x.clone(memory_format=torch.contiguous_format) for x in tensors[i * n:(i + 1) * n]] for i in (0, 2, 3))
    if get_proxy_mode() is not None:                       # a compiler is reading: it fuses the formula by itself
        scale1, scale2 = (-1.0 / torch.expm1(t * math.log(max(beta, 1e-300))) for beta in (beta1, beta2))
        for p, g, m, v, decay in zip(ps, gs, ms, vs, decays):
            m.lerp_(g, 1.0 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
            p.sub_(rate * (m * scale1 / ((v * scale2).sqrt() + eps) + decay * p))
        return (*ps, *ms, *vs)
    for decay in set(decays):                              # the fused kernel works in place, here on the copies
        group = [i for i in range(n) if decays[i] == decay]
        torch._fused_adamw_(*([tree[i] for i in group] for tree in (ps, gs, ms, vs)), [], [t] * len(group), lr=rate,
                            beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=False)
    return (*ps, *ms, *vs)


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


def integer_matmul(x, y):
    row, column = x.dim() == 1, y.dim() == 1
    x, y = x[None] if row else x, y[:, None] if column else y
    out = (x[..., :, :, None] * y[..., None, :, :]).sum(-2, dtype=x.dtype)
    out = out.squeeze(-2) if row else out
    return out.squeeze(-1) if column else out


TABLE = {
    "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div,
    "floor_divide": torch.floor_divide, "remainder": torch.remainder, "pow": torch.pow,
    "maximum": lambda x, y: torch.maximum(x, y) if isinstance(y, torch.Tensor) else torch.clamp(x, min=y),
    "minimum": lambda x, y: torch.minimum(x, y) if isinstance(y, torch.Tensor) else torch.clamp(x, max=y),
    "negative": torch.neg, "abs": torch.abs, "sign": torch.sgn, "square": torch.square, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "log": torch.log, "log1p": torch.log1p,
    "atan2": torch.atan2, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "erf": torch.erf, "erfinv": torch.erfinv,
    "floor": _floats_only(torch.floor), "round": _floats_only(torch.round),
    "conj": lambda x: torch.conj(x).resolve_conj() if x.is_complex() else x,
    "real": lambda x: torch.real(x).contiguous() if x.is_complex() else x,
    "imag": lambda x: torch.imag(x).contiguous(), "complex": torch.complex, "where": torch.where,
    "equal": torch.eq, "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le, "greater": torch.gt,
    "greater_equal": torch.ge, "logical_and": torch.logical_and, "logical_or": torch.logical_or,
    "logical_not": torch.logical_not, "isfinite": torch.isfinite,
    "sum": _sum, "mean": _reduce(torch.mean), "max": _reduce(torch.amax), "min": _reduce(torch.amin), "argmax": _argmax,
    "all": _reduce(lambda x, axis, keepdim=False: torch.all(x.bool(), axis, keepdim=keepdim)),
    "any": _reduce(lambda x, axis, keepdim=False: torch.any(x.bool(), axis, keepdim=keepdim)),
    "logsumexp": lambda x, axis=-1, keepdims=False: torch.logsumexp(x, _axes(x, axis), keepdim=keepdims),
    "cumsum": lambda x, axis=0: torch.cumsum(x, axis, dtype=x.dtype),
    "cummax": lambda x, axis=0: torch.cummax(x, axis).values,
    "cumlogsumexp": lambda x, axis=0: torch.logcumsumexp(x, axis),
    "reshape": torch.reshape, "permute_dims": torch.permute, "broadcast_to": torch.broadcast_to,
    "concat_all": lambda *xs, axis=0: torch.cat(xs, axis), "pad": _pad,
    "cut": lambda x, start, stop, axis=0: torch.narrow(x, axis, start, stop - start),
    "split_all": lambda x, sizes, axis=0: tuple(torch.split(x, sizes, axis)),
    "flip": lambda x, axis: torch.flip(x, (axis,)), "matmul": matmul,
    "take_axis": _take, "scatter_add": _scatter_add,
    "gather_along": lambda x, i, axis: torch.take_along_dim(x, i.long(), axis),
    "put_add_along_axis": lambda x, i, u, axis: torch.scatter_add(x, axis, i.long(), u.to(x.dtype)),
    "get_at": _get_at, "set_at": _set_at, "add_at": _add_at, "argsort": _argsort,
    "fft": _transform(torch.fft.fft), "ifft": _transform(torch.fft.ifft), "rfft": _transform(torch.fft.rfft),
    "irfft": _transform(torch.fft.irfft),
    "sigmoid": torch.sigmoid, "relu": torch.relu, "silu": F.silu, "gelu": F.gelu, "softplus": F.softplus,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softmax": lambda x, axis=-1: torch.softmax(x, axis), "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "attention_rows": _attention,
    "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "rms_norm": lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps),
    "cross_entropy_rows": lambda x, labels: F.cross_entropy(
        x.reshape(-1, x.shape[-1]), labels.long().reshape(-1), reduction="none").reshape(labels.shape),
    "conv1d_rows": lambda x, w, b=None, stride=1, dilation=1, groups=1: torch.nn.functional.conv1d(x, w, b, stride, 0, dilation, groups),
    "depthwise_rows": _depthwise, "adam_update": _adam_update,
}
