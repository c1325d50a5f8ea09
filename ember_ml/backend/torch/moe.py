"""Mixture of experts on torch: on a CPU a loop over experts, on a GPU torch's grouped matrix product.

The loop waits for the offsets, which on a CPU are at hand. A compiler that reads the program sees one operator instead.
"""

from __future__ import annotations

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy.moe import CHUNK, groups, spans, tiles
from ember_ml.backend.torch.base import topk_indices
from ember_ml.kernels import NEVER

_aten = torch.ops.aten


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


def softmax_choice(z, bias, *, k):
    return topk_indices(_probabilities(z, NEVER).add(bias), k=k)


def softmax_weights(z, ids, *, normalize, eps, scale):
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
    summed = F.embedding_bag(inverse, expert_out.to(kind), mode="sum", per_sample_weights=weights.to(kind))
    return summed.to(expert_out.dtype)


def _fits_grouped_mm(*tensors) -> bool:
    """torch's grouped product wants rows that begin at multiples of 16 bytes, on a GPU bfloat16."""
    return all(t.is_cuda and t.dtype is torch.bfloat16 and t.shape[-1] % 8 == 0 and t.shape[-2] % 8 == 0 for t in tensors)


def _plain(t):
    """A tensor whose two last axes are plain or transposed memory with rows at multiples of 16 bytes, which is what a grouped product reads."""
    def fits(along, across):
        step = t.stride(across)
        return t.stride(along) == 1 and step >= t.shape[along] and step * t.element_size() % 16 == 0
    return t if t.is_contiguous() or fits(-1, -2) or fits(-2, -1) else t.contiguous()


def grouped_rows(x, w, offsets, *, block, complete):
    if w.is_cuda and _fits_grouped_mm(w) and x.shape[0]:
        x = x.contiguous()
        y = F.grouped_mm(x, _plain(w).transpose(1, 2), offs=offsets[1:])
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


def _gelu(approximate):
    return (lambda z: F.gelu(z, approximate=approximate),
            lambda z, da: (F.gelu(z, approximate=approximate), _aten.gelu_backward(da, z, approximate=approximate)))


def _with_slope(fn, backward):
    def both(z, da):
        a = fn(z)
        return a, backward(da, a)
    return fn, both


#: name -> (value, value and gradient for the value's gradient)
_ACTIVATIONS = {
    "identity": (lambda z: z, lambda z, da: (z, da)),
    "relu": _with_slope(torch.relu, lambda da, a: _aten.threshold_backward(da, a, 0)),
    "tanh": _with_slope(torch.tanh, _aten.tanh_backward), "sigmoid": _with_slope(torch.sigmoid, _aten.sigmoid_backward),
    "silu": (F.silu, lambda z, da: (F.silu(z), _aten.silu_backward(da, z))),
    "gelu": _gelu("none"), "gelu_tanh": _gelu("tanh"),
}


#: pairs of a token and an expert for which Python plans faster than torch
_FEW_PAIRS = 128


def _few(x, w1, b1, w2, b2, order, complete: bool) -> bool:
    """Whether all rows go through their experts at once, by torch's grouped product: its loop over experts is not Python's.

    It wants float32 on a CPU, rows that begin at multiples of 16 bytes, and no rows of nobody.
    """
    return (complete and b1 is None and b2 is None and order.numel() <= CHUNK and x.dtype is torch.float32
            and all(n % 4 == 0 for n in (*w1.shape[1:], *w2.shape[1:])))


def _mlp_few(x, weights, w1, w2, order, inverse, offsets, activation, glu, keep):
    xs = torch.index_select(x, 0, torch.div(order, inverse.shape[1], rounding_mode="floor"))
    h = F.grouped_mm(xs, _plain(w1).transpose(1, 2), offs=offsets[1:])
    y = F.grouped_mm(_activate(h, activation, glu), _plain(w2).transpose(1, 2), offs=offsets[1:])
    return moe_combine_rows(y, inverse, weights), h if keep else h[:0]


def _mlp_few_grad(g, h, x, weights, w1, w2, order, inverse, offsets, activation, glu):
    tokens, w = torch.div(order, inverse.shape[1], rounding_mode="floor"), weights.reshape(-1)[order, None]
    gs, xs, ends = torch.index_select(g, 0, tokens), torch.index_select(x, 0, tokens), offsets[1:]
    da = F.grouped_mm(gs, _plain(w2), offs=ends)
    a, dh = torch.empty_like(da), torch.empty_like(h)
    _activation_backward(da, h, a, dh, activation, glu)
    d_weights = torch.sum(da.mul_(a), 1)
    d_rows = F.grouped_mm(dh, _plain(w1), offs=ends)
    d_w1, d_w2 = F.grouped_mm(dh.T, xs.mul_(w), offs=ends), F.grouped_mm(gs.mul_(w).T, a, offs=ends)
    d_x = moe_combine_rows(d_rows, inverse, weights)
    nothing = x.new_zeros((0,))
    return d_x, d_weights[inverse], d_w1, nothing, d_w2, nothing


def _mlp(x, weights, w1, b1, w2, b2, order, inverse, offsets, activation: str, glu: bool, keep: bool):
    ends = offsets.tolist()
    hidden = x.new_empty((order.numel() if keep else min(CHUNK, order.numel()), w1.shape[1]))
    tokens = torch.div(order, max(inverse.shape[1], 1), rounding_mode="floor")
    out = x.new_empty((order.numel(), w2.shape[1]))
    for lo, hi, parts in (tile for group in groups(ends) for tile in tiles(group)):
        xs, h = torch.index_select(x, 0, tokens[lo:hi]), hidden[lo:hi] if keep else hidden[:hi - lo]
        for e, first, last in parts:
            torch.mm(xs[first - lo:last - lo], w1[e].T, out=h[first - lo:last - lo])
            if b1 is not None:
                h[first - lo:last - lo] += b1[e]
        a = _activate(h, activation, glu)
        for e, first, last in parts:
            torch.mm(a[first - lo:last - lo], w2[e].T, out=out[first:last])
            if b2 is not None:
                out[first:last] += b2[e]
    if ends[-1] < len(out):
        out[ends[-1]:] = 0
    return moe_combine_rows(out, inverse, weights), hidden if keep else hidden[:0]


def _mlp_grad(g, h, x, weights, w1, b1, w2, b2, order, inverse, offsets, activation: str, glu: bool):
    inner, wide, ends = w2.shape[2], weights.dtype, offsets.tolist()
    d_w1, d_w2 = w1.new_empty(w1.shape), w2.new_empty(w2.shape)
    d_b1, d_b2 = (x.new_zeros((0,) if b is None else b.shape) for b in (b1, b2))
    d_rows, d_weights = x.new_empty((order.numel(), x.shape[1])), weights.new_zeros(order.numel())
    row_weights = weights.reshape(-1)[order, None].to(x.dtype)
    tokens = torch.div(order, max(inverse.shape[1], 1), rounding_mode="floor")
    for e, (lo, hi) in enumerate(zip(ends, ends[1:])):
        if hi == lo:
            d_w1[e], d_w2[e] = 0, 0
    for group in groups(ends):                             # all without the rows' weights, which come in on the narrow side
        begin, end = group[0][1], group[-1][2]
        a, dh = (x.new_empty((end - begin, width)) for width in (inner, w1.shape[1]))
        gs, xs = (torch.index_select(t, 0, tokens[begin:end]) for t in (g, x))
        w = row_weights[begin:end]
        for lo, hi, parts in tiles(group):
            here, da = slice(lo - begin, hi - begin), x.new_empty((hi - lo, inner))
            for e, first, last in parts:
                torch.mm(gs[first - begin:last - begin], w2[e], out=da[first - lo:last - lo])
            _activation_backward(da, h[lo:hi], a[here], dh[here], activation, glu)
            torch.sum(da.mul_(a[here]).to(wide), 1, out=d_weights[lo:hi])
            for e, first, last in parts:
                torch.mm(dh[first - begin:last - begin], w1[e], out=d_rows[first:last])
        for e, first, last in group:
            mine = slice(first - begin, last - begin)
            if b1 is not None:
                torch.mv(dh[mine].T, w[mine, 0], out=d_b1[e])
            if b2 is not None:
                d_weights[first:last] += (gs[mine] @ b2[e]).to(wide)
                torch.mv(gs[mine].T, w[mine, 0], out=d_b2[e])
        xs *= w
        gs *= w
        for e, first, last in group:
            mine = slice(first - begin, last - begin)
            torch.mm(dh[mine].T, xs[mine], out=d_w1[e])
            torch.mm(gs[mine].T, a[mine], out=d_w2[e])
    d_rows[ends[-1]:] = 0
    d_x = moe_combine_rows(d_rows, inverse, weights)
    return d_x, d_weights[inverse], d_w1, d_b1, d_w2, d_b2


def _activate(h, activation, glu):
    act = _ACTIVATIONS[activation][0]
    if not glu:
        return act(h)
    gate, up = h.chunk(2, 1)
    return gate * up if activation == "identity" else act(gate).mul_(up)


def _activation_backward(da, h, a, dh, activation, glu):
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
    act, dh[:, :inner] = _ACTIVATIONS[activation][1](gate, da * up if glu else da)
    if glu:
        torch.mul(act, da, out=dh[:, inner:])
        act = act * up
    a[...] = act


@torch.library.custom_op("ember::moe_mlp", mutates_args=())
def _mlp_op(x: torch.Tensor, weights: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor | None, w2: torch.Tensor,
            b2: torch.Tensor | None, order: torch.Tensor, inverse: torch.Tensor, offsets: torch.Tensor, activation: str,
            glu: bool, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return _mlp(x, weights, w1, b1, w2, b2, order, inverse, offsets, activation, glu, keep)


@_mlp_op.register_fake
def _(x, weights, w1, b1, w2, b2, order, inverse, offsets, activation, glu, keep):
    return x.new_empty((x.shape[0], w2.shape[1])), x.new_empty((order.numel() if keep else 0, w1.shape[1]))


@torch.library.custom_op("ember::moe_mlp_grad", mutates_args=())
def _mlp_grad_op(g: torch.Tensor, h: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, w1: torch.Tensor,
                 b1: torch.Tensor | None, w2: torch.Tensor, b2: torch.Tensor | None, order: torch.Tensor,
                 inverse: torch.Tensor, offsets: torch.Tensor, activation: str, glu: bool) -> list[torch.Tensor]:
    return list(_mlp_grad(g, h, x, weights, w1, b1, w2, b2, order, inverse, offsets, activation, glu))


@_mlp_grad_op.register_fake
def _(g, h, x, weights, w1, b1, w2, b2, order, inverse, offsets, activation, glu):
    d_b1, d_b2 = (x.new_empty((0,) if b is None else b.shape) for b in (b1, b2))
    return [x.new_empty(x.shape), weights.new_empty(inverse.shape), w1.new_empty(w1.shape), d_b1, w2.new_empty(w2.shape), d_b2]


def _save_mlp(ctx, inputs, output):
    *tensors, ctx.activation, ctx.glu, _ = inputs
    ctx.save_for_backward(output[1], *tensors)


def _mlp_op_grad(ctx, g, _g_hidden):
    saved = ctx.saved_tensors
    grads = list(_mlp_grad_op(g, *saved, ctx.activation, ctx.glu))
    grads[3], grads[5] = (None if b is None else d for b, d in ((saved[4], grads[3]), (saved[6], grads[5])))
    return *grads, None, None, None, None, None, None


_mlp_op.register_autograd(_mlp_op_grad, setup_context=_save_mlp)


def moe_mlp_host(*args, activation, glu, block, complete, keep):
    x, weights, w1, b1, w2, b2, *plan = args
    if get_proxy_mode() is not None:
        return _mlp_op(*args, activation, glu, keep)
    if _few(x, w1, b1, w2, b2, plan[0], complete):
        return _mlp_few(x, weights, w1, w2, *plan, activation, glu, keep)
    return _mlp(*args, activation, glu, keep)


def moe_mlp_routed(x, weights, ids, w1, b1, w2, b2, *, activation, glu):
    if 0 < ids.numel() <= _FEW_PAIRS and get_proxy_mode() is None:
        if ids.shape[0] == 1 and x.dtype is weights.dtype:
            return _mlp_one(x[0], weights, ids[0].tolist(), w1, b1, w2, b2, _ACTIVATIONS[activation][0], glu)
        if _few(x, w1, b1, w2, b2, ids, True):
            return _mlp_pairs(x, weights, ids, w1, w2, _ACTIVATIONS[activation][0], glu)
    plan = moe_plan_rows(ids, experts=w1.shape[0], block=1, rows=ids.numel(), last=w1.shape[0] - 1)
    return moe_mlp_host(x, weights, w1, b1, w2, b2, *plan, activation=activation, glu=glu, block=1, complete=True, keep=False)[0]


def _mlp_one(x, weights, ids: list[int], w1, b1, w2, b2, act, glu):
    """One token, x (D,): its experts one after the other, each a product of a matrix with a vector."""
    inner, ids = w2.shape[2], _in_range(ids, w1.shape[0])
    h = torch.stack([torch.mv(w1[e], x) if b1 is None else torch.addmv(b1[e], w1[e], x) for e in ids])
    a = act(h[:, :inner])
    a = (a * h[:, inner:] if glu else a) * weights.T
    y = None if b2 is None else torch.mv(b2[ids].T, weights[0])
    for e, row in zip(ids, a):
        y = torch.mv(w2[e], row) if y is None else torch.addmv(y, w2[e], row)
    return y[None]


def _mlp_pairs(x, weights, ids, w1, w2, act, glu):
    """Few pairs: `_mlp_few` with a plan made in Python, which takes less than an operation of torch on so few numbers."""
    inner, experts = w2.shape[2], _in_range(ids.reshape(-1).tolist(), w1.shape[0])
    order, ends = sorted(range(len(experts)), key=experts.__getitem__), [0] * w1.shape[0]
    for row, pair in enumerate(order):
        ends[experts[pair]] = row + 1
    ends, order = torch.tensor(list(accumulate(ends, max)), dtype=torch.int32), torch.tensor(order)
    tokens = order // ids.shape[1]
    h = F.grouped_mm(torch.index_select(x, 0, tokens), _plain(w1).transpose(1, 2), offs=ends)
    a = act(h[:, :inner])
    a = (a.mul_(h[:, inner:]) if glu else a).mul_(torch.index_select(weights.reshape(-1), 0, order)[:, None])
    return x.new_zeros((x.shape[0], w2.shape[1])).index_add_(0, tokens, F.grouped_mm(a, _plain(w2).transpose(1, 2), offs=ends))


def _in_range(ids: list[int], experts: int) -> list[int]:
    return ids if 0 <= min(ids) and max(ids) < experts else [min(max(e, 0), experts - 1) for e in ids]


def moe_mlp_grad(*args, activation, glu, block, complete):
    g, h, x, weights, w1, b1, w2, b2, *plan = args
    if get_proxy_mode() is not None:
        return tuple(_mlp_grad_op(*args, activation, glu))
    if _few(x, w1, b1, w2, b2, plan[0], complete):
        return _mlp_few_grad(g, h, x, weights, w1, w2, *plan, activation, glu)
    return tuple(_mlp_grad(*args, activation, glu))


TABLE = {"moe_plan_rows": moe_plan_rows, "moe_combine_rows": moe_combine_rows, "grouped_rows": grouped_rows,
         "grouped_outer_rows": grouped_outer_rows, "moe_mlp_host": moe_mlp_host, "moe_mlp_grad": moe_mlp_grad, "moe_mlp_routed": moe_mlp_routed,
         "softmax_choice": softmax_choice, "softmax_weights": softmax_weights}
