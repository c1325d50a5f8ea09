"""The op table of torch, on every device it has, and what torch spells or does differently from the op's definition.

Families of their own stand beside it: elementwise, reduce, index, linalg, and so on.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.torch.operator import untraced


def _pad(x, width):
    flat = [n for pair in reversed(width) for n in pair]
    return F.pad(x, flat)


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


TABLE = {
    "reshape": torch.reshape, "permute_dims": torch.permute, "broadcast_to": torch.broadcast_to,
    "concat_all": lambda *xs, axis=0: torch.cat(xs, axis), "pad": _pad,
    "cut": lambda x, start, stop, axis=0: torch.narrow(x, axis, start, stop - start),
    "split_all": lambda x, sizes, axis=0: tuple(torch.split_with_sizes(x, sizes, axis)),
    "flip": lambda x, axis=None: torch.flip(x, tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis),
    "argsort": _argsort, "topk_indices": topk_indices, "rope": _rope,
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
    "conv1d_rows": lambda x, w, b=None, stride=1, dilation=1, groups=1: F.conv1d(x, w, b, stride, 0, dilation, groups),
    "conv2d_rows": lambda x, w, b=None, stride=(1, 1), dilation=(1, 1), groups=1: F.conv2d(x, w, b, stride, 0, dilation, groups),
    "depthwise_rows": _depthwise,
}
