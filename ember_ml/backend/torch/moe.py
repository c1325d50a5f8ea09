"""Mixture of experts on torch: routes, plans, and products by expert, on a CPU a loop, on a GPU torch's grouped matrix product.

The loop waits for the offsets, which on a CPU are at hand. A compiler that reads the program sees one operator instead.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy.moe import spans
from ember_ml.backend.torch.base import topk_indices
from ember_ml.kernels import NEVER

def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)


#: logits up to which looking for one that is not finite is cheaper than working around them, where nothing has to be waited for
_FEW_LOGITS = 4096


def _probabilities(z, nothing: float):
    """Softmax of the finite logits; `nothing` in place of the others."""
    if get_proxy_mode() is None and z.numel() <= _FEW_LOGITS and not z.is_cuda and math.isfinite(z.sum().item()):
        return torch.softmax(z, -1)
    known = torch.nan_to_num(z, nan=NEVER, posinf=NEVER, neginf=NEVER)
    return torch.softmax(known, -1).masked_fill(known != z, nothing)


def softmax_choice_rows(z, bias, *, k):
    return topk_indices(_probabilities(z, NEVER).add(bias), k=k)


def softmax_weights_rows(z, ids, *, normalize, eps, scale):
    scores = _probabilities(z, 0.0)
    weights = torch.gather(scores, 1, ids.to(torch.int64))
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    return weights * scale if scale != 1.0 else weights, scores


def moe_plan_rows(ids, *, experts, block, rows, last):
    flat = ids.reshape(-1).clamp(0, last)
    sorted_ids, order = torch.sort(flat, stable=True)
    row = torch.arange(flat.numel(), dtype=torch.int32, device=ids.device)
    inverse = torch.empty_like(flat).scatter(0, order, row)
    firsts = torch.arange(experts + 1, dtype=torch.int32, device=ids.device)
    offsets = torch.searchsorted(sorted_ids, firsts, out_int32=True)          # rows before each expert's
    return order.to(torch.int32), inverse.reshape(ids.shape), offsets


def moe_combine_rows(expert_out, inverse, weights):
    """One kernel gathers, weighs and adds; on a GPU it adds 16-bit rows in float32 by itself."""
    if not (expert_out.shape[0] and inverse.numel()):
        return expert_out.new_zeros((inverse.shape[0], expert_out.shape[1]))
    kind = expert_out.dtype if expert_out.is_cuda else _wide(expert_out.dtype)
    inverse = inverse.clamp(0, expert_out.shape[0] - 1)
    summed = F.embedding_bag(inverse, expert_out.to(kind), mode="sum", per_sample_weights=weights.to(kind))
    return summed.to(expert_out.dtype)


def _fits_grouped_mm(*tensors) -> bool:
    """torch's grouped product wants rows that begin at multiples of 16 bytes, on a GPU bfloat16."""
    return all(t.is_cuda and t.dtype is torch.bfloat16 and t.shape[-1] % 8 == 0 and t.shape[-2] % 8 == 0 for t in tensors)


def as_rows(t):
    """A tensor whose two last axes are plain or transposed memory with rows at multiples of 16 bytes, which is what a grouped product reads."""
    def fits(along, across):
        step = t.stride(across)
        return t.stride(along) == 1 and step >= t.shape[along] and step * t.element_size() % 16 == 0
    return t if t.is_contiguous() or fits(-1, -2) or fits(-2, -1) else t.contiguous()


def grouped_rows(x, w, offsets, *, block, complete):
    if w.is_cuda and _fits_grouped_mm(w) and x.shape[0]:
        x = x.contiguous()
        y = F.grouped_mm(x, as_rows(w).transpose(1, 2), offs=offsets[1:])
        if complete:
            return y
        row = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)    # it leaves the other rows unwritten
        return torch.where((row < offsets[-1])[:, None], y, 0.0)
    return _rows(x, w, offsets) if get_proxy_mode() is None else _rows_op(x, w, offsets)


def _rows(x, w, offsets):
    y = x.new_zeros((x.shape[0], w.shape[1]))
    for e, lo, hi in spans(offsets.tolist()):
        torch.mm(x[lo:hi], w[e].T, out=y[lo:hi])
    return y


def grouped_outer_rows(a, b, offsets, *, block, complete):
    if a.is_cuda and a.dtype is torch.bfloat16 and a.shape[1] % 8 == 0 and b.shape[1] % 8 == 0 and a.shape[0]:
        return F.grouped_mm(a.contiguous().T, b.contiguous(), offs=offsets[1:])
    return _outer(a, b, offsets) if get_proxy_mode() is None else _outer_op(a, b, offsets)


def _outer(a, b, offsets):
    c = a.new_empty((offsets.shape[0] - 1, a.shape[1], b.shape[1]))
    ends = offsets.tolist()
    for e, (lo, hi) in enumerate(zip(ends, ends[1:])):
        torch.mm(a[lo:hi].T, b[lo:hi], out=c[e])
    return c


@torch.library.custom_op("ember::grouped_rows", mutates_args=())
def _rows_op(x: torch.Tensor, w: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return _rows(x, w, offsets)


@_rows_op.register_fake
def _(x, w, offsets):
    return x.new_empty((x.shape[0], w.shape[1]))


@torch.library.custom_op("ember::grouped_outer", mutates_args=())
def _outer_op(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return _outer(a, b, offsets)


@_outer_op.register_fake
def _(a, b, offsets):
    return a.new_empty((offsets.shape[0] - 1, a.shape[1], b.shape[1]))


def _save_groups(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _rows_grad(ctx, g):
    x, w, offsets = ctx.saved_tensors
    return _rows_op(g, w.transpose(1, 2), offsets), _outer_op(g, x, offsets), None


def _outer_grad(ctx, g):
    a, b, offsets = ctx.saved_tensors
    return _rows_op(b, g, offsets), _rows_op(a, g.transpose(1, 2), offsets), None


_rows_op.register_autograd(_rows_grad, setup_context=_save_groups)
_outer_op.register_autograd(_outer_grad, setup_context=_save_groups)


TABLE = {"softmax_choice_rows": softmax_choice_rows, "softmax_weights_rows": softmax_weights_rows, "moe_plan_rows": moe_plan_rows,
         "moe_combine_rows": moe_combine_rows, "grouped_rows": grouped_rows, "grouped_outer_rows": grouped_outer_rows}
