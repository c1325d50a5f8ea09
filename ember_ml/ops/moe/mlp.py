"""Perceptrons as experts, from tokens to tokens: gather, two grouped products, activation, weighted combine."""

from __future__ import annotations

from ember_ml.autodiff.tape import pull
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.kernels import MOE_SWIGLU, MOE_SWIGLU_BACKWARD
from ember_ml.ops.activation import ACTIVATIONS
from ember_ml.ops.creation import ones, zeros
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.ops.index import checks_values, take_axis
from ember_ml.ops.moe.combine import moe_combine_rows
from ember_ml.ops.moe.grouped import grouped_outer_rows, grouped_rows
from ember_ml.ops.moe.plan import Plan, moe_gather, moe_plan, pair_values
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import cut, expand_dims, pad, reshape, split, swap_axes
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: activations whose slopes the loops over experts know; others take the grouped products
_ON_HOST = ("identity", "relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh")


def _activate(h, activation, glu):
    act = ACTIVATIONS[activation]
    if not glu:
        return act(h)
    gate, up = split(h, 2, axis=1)
    return act(gate) * up


def _activate_grad(g, _y, h, *, activation="silu", glu=True):
    return pull(lambda inputs: [_activate(*inputs, activation, glu)], [h], [g])


@op(vjp=_activate_grad, owns_gradient=True, kernel=MOE_SWIGLU)
def expert_activation(h, *, activation="silu", glu=True):
    """activation(h), or with glu activation(h[:, :f]) h[:, f:] for h (R, 2 f)."""
    return _activate(h, activation, glu)


@op(kernel=MOE_SWIGLU_BACKWARD)
def expert_activation_grad(g, h, row_weights, *, activation="silu", glu=True):
    """What the gradient of the weighted experts needs, from g = d y W2 (R, f), before the rows' weights (R, 1).

    Returns: d_h, weighted; the activation times the weight; the gradient of the weight, (R,) in float32 at least:
    <a, d y W2> = <W2 a, d y>, so the experts' outputs need not be kept (Guo et al. 2025, SonicMoE).
    """
    a = _activate(h, activation, glu)
    wide = dt.promote(h.dtype, dt.float32)
    d_weights = total(a.astype(wide) * g.astype(wide), axis=1)
    w = row_weights.astype(h.dtype)
    d_h, = _activate_grad(g * w, None, h, activation=activation, glu=glu)
    return d_h, a * w, d_weights


#: columns that a bias takes as a matrix; 16-bit products on GPUs want rows of 16 bytes
_BIAS_COLUMNS = 8


def _ones(plan, like):
    return ones((plan.order.shape[0], _BIAS_COLUMNS), like.dtype, like=like)


def _bias_rows(bias, plan):
    """(R, n) from (E, n): every row its expert's, as a grouped product of ones with the bias in the first of some columns."""
    matrix = pad(expand_dims(bias, 2), ((0, 0), (0, 0), (0, _BIAS_COLUMNS - 1)))
    return grouped_rows(_ones(plan, bias), matrix, plan.offsets, block=plan.block, complete=plan.complete)


def _bias_grad(d_rows, plan):
    sums = grouped_outer_rows(d_rows, _ones(plan, d_rows), plan.offsets, block=plan.block, complete=plan.complete)
    return reshape(cut(sums, 0, 1, axis=2), (plan.num_experts, d_rows.shape[1]))


@op(public="moe_mlp", vjp=lambda g, _y, x, w1, b1, order, inverse, offsets, **kw: _up_grad(g, x, w1, b1, order, inverse, offsets, **kw),
    owns_gradient=True)
def moe_up(x, w1, b1, order, inverse, offsets, *, block, complete):
    """(R, hidden): w1_e x + b1_e for the rows of a plan, x (T, D). Its gradient keeps x, not the rows."""
    plan = Plan(order, inverse, offsets, block, complete)
    h = grouped_rows(moe_gather(x, plan), w1, offsets, block=block, complete=complete)
    return h if b1 is None else h + _bias_rows(b1, plan)


def _up_grad(g, x, w1, b1, order, inverse, offsets, *, block, complete):
    plan, kw = Plan(order, inverse, offsets, block, complete), {"block": block, "complete": complete}
    d_w1 = grouped_outer_rows(g, moe_gather(x, plan), offsets, **kw)
    ones_each = ones(inverse.shape, dt.promote(x.dtype, dt.float32), like=x)
    d_x = moe_combine_rows(grouped_rows(g, swap_axes(w1), offsets, **kw), inverse, ones_each)
    return d_x, d_w1, None if b1 is None else _bias_grad(g, plan)


@op(public="moe_mlp", vjp=lambda g, _y, h, weights, w2, b2, order, inverse, offsets, **kw: _down_grad(g, h, weights, w2, b2, order, inverse,
                                                                                   offsets, **kw), owns_gradient=True)
def moe_down(h, weights, w2, b2, order, inverse, offsets, *, activation, glu, block, complete):
    """(T, D_out): the weighted sum of w2_e a(h) + b2_e over each token's rows. Its gradient keeps h, not a or the outputs."""
    plan = Plan(order, inverse, offsets, block, complete)
    y = grouped_rows(expert_activation(h, activation=activation, glu=glu), w2, offsets, block=block, complete=complete)
    return moe_combine_rows(y if b2 is None else y + _bias_rows(b2, plan), inverse, weights)


def _down_grad(g, h, weights, w2, b2, order, inverse, offsets, *, activation, glu, block, complete):
    plan, kw = Plan(order, inverse, offsets, block, complete), {"block": block, "complete": complete}
    rows, row_weights = moe_gather(g, plan), pair_values(weights, plan)
    d_h, a, d_weights = expert_activation_grad(grouped_rows(rows, swap_axes(w2), offsets, **kw), h, row_weights,
                                               activation=activation, glu=glu)
    d_w2, d_b2 = grouped_outer_rows(rows, a, offsets, **kw), None
    if b2 is not None:
        d_b2 = _bias_grad(rows * row_weights.astype(rows.dtype), plan)
        wide = d_weights.dtype
        d_weights = d_weights + total(rows.astype(wide) * _bias_rows(b2, plan).astype(wide), axis=1)
    return d_h, take_axis(d_weights, inverse, axis=0), d_w2, d_b2


def _in_parts(x, weights, w1, b1, w2, b2, *plan, activation, glu, block, complete):
    """(y, h) by the two ops above."""
    h = moe_up(x, w1, b1, *plan, block=block, complete=complete)
    return moe_down(h, weights, w2, b2, *plan, activation=activation, glu=glu, block=block, complete=complete), h


def _grad_rule(g, _out, g_y, _h, x, weights, w1, b1, w2, b2, *plan, **kw):
    """The gradient hangs on the inputs alone: h is w1 x + b1, and is made again."""
    inputs = [g_y, x, weights, w1, b1, w2, b2]
    given = [i for i, t in enumerate(inputs) if t is not None]

    def again(tensors):
        full = list(inputs)
        for i, t in zip(given, tensors):
            full[i] = t
        g_y, x, weights, w1, b1, w2, b2 = full
        h = moe_up(x, w1, b1, *plan, block=kw["block"], complete=kw["complete"])
        return list(moe_mlp_grad.__wrapped__(g_y, h, x, weights, w1, b1, w2, b2, *plan, **kw))

    found = dict(zip(given, pull(again, [inputs[i] for i in given], list(g))))
    return found[0], None, *(found.get(i) for i in range(1, 7)), None, None, None


@op(vjp=_grad_rule, owns_gradient=True)
def moe_mlp_grad(g, h, x, weights, w1, b1, w2, b2, order, inverse, offsets, *, activation, glu, block, complete):
    """(d_x, d_weights, d_w1, d_b1, d_w2, d_b2) of `moe_mlp_host`, for its output's gradient g; d_b of no bias is empty."""
    plan, kw = (order, inverse, offsets), {"block": block, "complete": complete}
    d_h, d_weights, d_w2, d_b2 = _down_grad(g, h, weights, w2, b2, *plan, **kw, activation=activation, glu=glu)
    d_x, d_w1, d_b1 = _up_grad(d_h, x, w1, b1, *plan, **kw)
    nothing = zeros((0,), like=g)
    return d_x, d_weights.astype(weights.dtype), d_w1, nothing if b1 is None else d_b1, d_w2, nothing if b2 is None else d_b2


def _host_rule(g, out, x, weights, w1, b1, w2, b2, *plan, keep, **kw):
    grad = moe_mlp_grad
    if not _at_hand(g[0]):                                 # a compiler records the gradient of what was computed outside of it
        h, grad = moe_up(x, w1, b1, *plan, block=kw["block"], complete=kw["complete"]), moe_mlp_grad.__wrapped__
    else:                                                  # in this engine's layout
        h = out[1] if keep else moe_mlp_host(x, weights, w1, b1, w2, b2, *plan, **kw, keep=True)[1]
    d_x, d_weights, d_w1, d_b1, d_w2, d_b2 = grad(g[0], h, x, weights, w1, b1, w2, b2, *plan, **kw)
    return d_x, d_weights, d_w1, None if b1 is None else d_b1, d_w2, None if b2 is None else d_b2


@op(public="moe_mlp", vjp=_host_rule, owns_gradient=True)
def moe_mlp_host(x, weights, w1, b1, w2, b2, order, inverse, offsets, *, activation, glu, block, complete, keep):
    """`moe_mlp` on a CPU, where an expert's rows go through both layers while they are in the cache. Returns (y, h), with h the
    rows before the activation, for the gradient, laid out as `moe_mlp_grad` of the same engine reads them; h is empty without keep."""
    y, h = _in_parts(x, weights, w1, b1, w2, b2, order, inverse, offsets, activation=activation, glu=glu, block=block,
                     complete=complete)
    return y, h if keep else zeros((0, h.shape[1]), h.dtype, like=h)


def _at_hand(*tensors) -> bool:
    return tensors[0].backend.is_at_hand([t.data for t in tensors if t is not None])


def _is_watched(t) -> bool:
    return t.node is not None or t.backend.runtime.is_watched(t.data)


@op(public="moe_mlp", no_grad="moe_mlp makes a plan where a gradient is wanted")
def moe_mlp_routed(x, weights, ids, w1, b1, w2, b2, *, activation, glu):
    """`moe_mlp` without a gradient, by the ids (T, K), int32, of a complete routing: few tokens need no plan where an engine can wait."""
    return moe_mlp(x, weights, moe_plan(ids, w2.shape[0]), w1, w2, b1, b2, activation, glu)


def moe_mlp(x: EmberTensor, weights: EmberTensor, plan: Plan | EmberTensor, w1: EmberTensor, w2: EmberTensor, b1: EmberTensor | None = None,
            b2: EmberTensor | None = None, activation: str = "silu", glu: bool = True) -> EmberTensor:
    """y[t] = sum_k weights[t, k] f_e(x[t]), e the expert of (t, k); f_e(x) = w2_e a(w1_e x + b1_e) + b2_e.

    a is the activation; with glu it is a(h) = activation(h_gate) h_up, the first half of w1's rows giving h_gate, the second
    h_up (Shazeer 2020, GLU Variants Improve Transformer).

    Args:
        x: (T, D). weights: (T, K), float32. plan: of the routing's ids (T, K), or the ids, where every slot has an expert.
        w1: (E, F, D), with glu (E, 2 F, D). b1: (E, F) or (E, 2 F). w2: (E, D_out, F). b2: (E, D_out).
        activation: a name in `ember_ml.ops.activation.ACTIVATIONS`.

    Returns: (T, D_out). For the gradient x and the rows before the activation are kept, nothing else.

    The cost grows with T K, not with E. The same input gives the same bits: nothing is added in a racing order.
    """
    routed = not isinstance(plan, Plan)
    expect_tensors("moe_mlp", {"b1": b1, "b2": b2}, x=x, weights=weights, w1=w1, w2=w2, **({"plan": plan} if routed else {}))
    if activation not in ACTIVATIONS:
        raise ConfigError(f"moe_mlp: expected activation to be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if w1.ndim != 3 or w2.ndim != 3 or routed and plan.ndim != 2:
        raise ShapeError(f"moe_mlp: expected w1 (E, F, D), w2 (E, D_out, F){' and ids (T, K)' if routed else ''}; got {w1.shape}, {w2.shape}"
                         f"{f' and {plan.shape}' if routed else ''}")
    inner, experts, slots = w2.shape[2], w2.shape[0] if routed else plan.num_experts, (plan if routed else plan.inverse).shape
    if x.ndim != 2 or w1.shape != (experts, inner * (2 if glu else 1), x.shape[1]) or w2.shape[0] != experts:
        raise ShapeError(f"moe_mlp: expected x (T, D), w1 (E, {'2 F' if glu else 'F'}, D) and w2 (E, D_out, F) for E = "
                         f"{experts}; got {x.shape}, {w1.shape} and {w2.shape}")
    if weights.shape != slots or x.shape[0] != slots[0]:
        raise ShapeError(f"moe_mlp: expected weights {slots} for x of {slots[0]} tokens; got {weights.shape} and {x.shape}")
    for name, b, shape in (("b1", b1, w1.shape[:2]), ("b2", b2, w2.shape[:2])):
        if b is not None and b.shape != shape:
            raise ShapeError(f"moe_mlp: expected {name} of shape {shape}, got {b.shape}")
    common = dt.promote(x.dtype, w1.dtype)
    x, w1, w2 = x.astype(common), w1.astype(common), w2.astype(common)
    b1, b2 = (b if b is None else b.astype(common) for b in (b1, b2))
    weights = weights.astype(dt.promote(common, dt.float32))
    args, kw = (x, weights, w1, b1, w2, b2), {"activation": activation, "glu": glu}
    watched = any(t is not None and _is_watched(t) for t in args)
    host = "moe_mlp_host" in x.backend.table and activation in _ON_HOST
    if routed:
        if plan.dtype is dt.int32 and host and not watched and "moe_mlp_routed" in x.backend.table and not checks_values(plan) and _at_hand(x):
            return moe_mlp_routed(x, weights, plan, w1, b1, w2, b2, **kw)
        plan = moe_plan(plan, experts)
    args, kw = (*args, *plan[:3]), {**kw, "block": plan.block, "complete": plan.complete}
    if host and _at_hand(*args):
        return moe_mlp_host(*args, **kw, keep=watched)[0]
    return _in_parts(*args, **kw)[0]
