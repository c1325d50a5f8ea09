"""Experts on torch's CPU side, from tokens to tokens: rows go through both layers of their expert while they are in the cache.

It waits for the offsets, which on a CPU are at hand. A compiler that reads the program sees one operator instead.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy.moe import CHUNK, groups, tiles
from ember_ml.backend.torch.expert_activation import ACTIVATIONS, activate, activation_backward
from ember_ml.backend.torch.moe import as_rows, moe_combine_rows, moe_plan_rows

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
    h = F.grouped_mm(xs, as_rows(w1).transpose(1, 2), offs=offsets[1:])
    y = F.grouped_mm(activate(h, activation, glu), as_rows(w2).transpose(1, 2), offs=offsets[1:])
    return moe_combine_rows(y, inverse, weights), h if keep else h[:0]


def _mlp_few_grad(g, h, x, weights, w1, w2, order, inverse, offsets, activation, glu):
    tokens, w = torch.div(order, inverse.shape[1], rounding_mode="floor"), weights.reshape(-1)[order, None]
    gs, xs, ends = torch.index_select(g, 0, tokens), torch.index_select(x, 0, tokens), offsets[1:]
    da = F.grouped_mm(gs, as_rows(w2), offs=ends)
    a, dh = torch.empty_like(da), torch.empty_like(h)
    activation_backward(da, h, a, dh, activation, glu)
    d_weights = torch.sum(da.mul_(a), 1)
    d_rows = F.grouped_mm(dh, as_rows(w1), offs=ends)
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
        a = activate(h, activation, glu)
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
            activation_backward(da, h[lo:hi], a[here], dh[here], activation, glu)
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
            return _mlp_one(x[0], weights, ids[0].tolist(), w1, b1, w2, b2, ACTIVATIONS[activation][0], glu)
        if _few(x, w1, b1, w2, b2, ids, True):
            return _mlp_pairs(x, weights, ids, w1, w2, ACTIVATIONS[activation][0], glu)
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
    h = F.grouped_mm(torch.index_select(x, 0, tokens), as_rows(w1).transpose(1, 2), offs=ends)
    a = act(h[:, :inner])
    a = (a.mul_(h[:, inner:]) if glu else a).mul_(torch.index_select(weights.reshape(-1), 0, order)[:, None])
    return x.new_zeros((x.shape[0], w2.shape[1])).index_add_(0, tokens, F.grouped_mm(a, as_rows(w2).transpose(1, 2), offs=ends))


def _in_range(ids: list[int], experts: int) -> list[int]:
    return ids if 0 <= min(ids) and max(ids) < experts else [min(max(e, 0), experts - 1) for e in ids]


def moe_mlp_grad(*args, activation, glu, block, complete):
    g, h, x, weights, w1, b1, w2, b2, *plan = args
    if get_proxy_mode() is not None:
        return tuple(_mlp_grad_op(*args, activation, glu))
    if _few(x, w1, b1, w2, b2, plan[0], complete):
        return _mlp_few_grad(g, h, x, weights, w1, w2, *plan, activation, glu)
    return tuple(_mlp_grad(*args, activation, glu))


TABLE = {"moe_mlp_host": moe_mlp_host, "moe_mlp_grad": moe_mlp_grad, "moe_mlp_routed": moe_mlp_routed}
