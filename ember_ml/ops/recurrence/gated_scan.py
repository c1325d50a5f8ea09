"""Recurrences without a parallel form: RNN, LSTM, GRU, sLSTM, by one loop over time and backpropagation through it.

    z_t = x_t + R h_{t-1};   state_t = update(z_t, state_{t-1}),  elementwise;   y_t = h_t

The states are kept (those beside h add less than x has itself), gates and derivatives are computed again, chunk by chunk from
the end. Since the update is elementwise, its derivative is one number for each pair of an output and an input and does not
depend on the cotangents: it is taken for all steps of a chunk at once. What runs step by step is then one product with
these numbers and one with R; the gradient of R is one product over the chunk.

Source: Werbos 1990, Backpropagation Through Time.
"""

from __future__ import annotations

from ember_ml.autodiff import tape
from ember_ml.errors import ShapeError
from ember_ml.ops.creation import zeros
from ember_ml.ops.declare import op
from ember_ml.ops.linear import addmm, matmul
from ember_ml.ops.recurrence.cells import GatedCell
from ember_ml.ops.recurrence.checks import check_state, check_tensors, kept
from ember_ml.ops.recurrence.chunks import Joined, after, fused
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, permute_dims, reshape, split, stack, swap_axes
from ember_ml.tensor import EmberTensor


def _project(h, R):
    """R h of each head: h (..., B, D) and R (H, dh, n dh) give (..., B, n D), gate after gate."""
    heads, dh, wide = R.shape
    if heads == 1:
        return matmul(h, reshape(R, (dh, wide)))
    rows = permute_dims(reshape(h, (-1, heads, dh)), (1, 0, 2))
    found = reshape(matmul(rows, R), (heads, -1, wide // dh, dh))
    return reshape(permute_dims(found, (1, 2, 0, 3)), (*h.shape[:-1], heads * wide))


def _heads_first(dr, heads, dh):
    """(..., n D), gate after gate, as (H, rows, n dh)."""
    return reshape(permute_dims(reshape(dr, (-1, dr.shape[-1] // (heads * dh), heads, dh)), (2, 0, 1, 3)), (heads, -1, dr.shape[-1] // heads))


def _project_back(dr, back):
    """The adjoint of `_project` in h: (..., B, n D) to (..., B, D), with R's blocks transposed: back (H, n dh, dh)."""
    heads, wide, dh = back.shape
    if heads == 1:
        return matmul(dr, reshape(back, (wide, dh)))
    rows = matmul(_heads_first(dr, heads, dh), back)
    return reshape(permute_dims(rows, (1, 0, 2)), (*dr.shape[:-1], heads * dh))


def _add_back(d, dr, back):
    """d (B, D), or None for zero, plus the adjoint of `_project` for dr (B, n D)."""
    if back.shape[0] == 1 and d is not None:
        return addmm(d, dr, reshape(back, back.shape[1:]))
    found = _project_back(dr, back)
    return found if d is None else d + found


def _matrix_grad(h, dr, R):
    """The gradient of R from all steps: h (T B, D) and dr (T B, n D)."""
    heads, dh, _ = R.shape
    return matmul(permute_dims(reshape(h, (-1, heads, dh)), (1, 2, 0)), _heads_first(dr, heads, dh))


def _cut_gates(cell, z):
    """z (..., G D) with and without the gates that R h is added to."""
    width = z.shape[-1] // cell.gates
    if cell.recurrent == cell.gates:
        return [z]
    return split(z, (cell.recurrent * width, (cell.gates - cell.recurrent) * width), axis=-1)


def _gates(cell, parts, h, R):
    """x + R h, gate by gate, for x as `_cut_gates` cuts it."""
    with_h, *without = parts
    z = addmm(with_h, h, reshape(R, R.shape[1:])) if R.shape[0] == 1 else with_h + _project(h, R)
    return [*split(z, cell.recurrent, axis=-1), *(g for x in without for g in split(x, cell.gates - cell.recurrent, axis=-1))]


def _walk(cell, resets, x, R, *state):
    """x (T B, G D), step after step, and state (B, D) each -> each part of the state after every step, (T B, D).

    With `resets` the first of `state` is what the state is multiplied with before each step, (T B, 1).
    """
    keep, state = (state[:1], state[1:]) if resets else ((), state)
    found, steps = [], x.shape[0] // state[0].shape[0]
    keep = [split(k, steps, axis=0) for k in keep]
    for t, parts in enumerate(zip(*(split(part, steps, axis=0) for part in _cut_gates(cell, x)))):
        state = [s * k[t] for k in keep for s in state] or state
        state = cell.update(tuple(_gates(cell, parts, state[0], R)), tuple(state))
        found.append(state)
    return [concat(part, axis=0) for part in zip(*found)]


def _slopes(cell, gates, state, i):
    """d (new state)_i / d gates and d state, for all steps at once: (T B, D) each, or None where it does not depend."""
    found = tape.pull(lambda given: [cell.update(tuple(given[:cell.gates]), tuple(given[cell.gates:]))[i]],
                      [*gates, *state], [state[i].ones_like()])
    return found[:cell.gates], found[cell.gates:]


def _combine(slopes, ds):
    """Sum of slopes times cotangents, over the parts of the new state; None where there is none."""
    found = None
    for slope, d in zip(slopes, ds):
        if slope is not None:
            found = slope * d if found is None else found + slope * d
    return found


def _walk_back(cell, resets, x, R, *rest):
    """A chunk backwards. After x and R (and `keep`, as in `_walk`), a tensor for each part of the state: what it was before every step, the
    cotangents of what it was after every step, (T B, D) each, and that of the last step from what comes after, (B, D).

    Returns the cotangents of x and R, and of the state before the first step.
    """
    S, n = cell.states, cell.recurrent
    keep, rest = (rest[:1], rest[1:]) if resets else ((), rest)
    before, given, ds = rest[:S], rest[S:2 * S], rest[2 * S:]
    before = [b * k for k in keep for b in before] or before
    batch, width = ds[0].shape
    steps = x.shape[0] // batch
    keep = [split(k, steps, axis=0) for k in keep]
    gates = _gates(cell, _cut_gates(cell, x), before[0], R)
    by_gate, by_state, zero = [], [], gates[0].zeros_like()
    for i in range(S):
        of_gates, of_state = _slopes(cell, gates, before, i)
        groups = [of_gates[:n], of_gates[n:]] if n < cell.gates else [of_gates]
        stacks = [stack([zero if s is None else s for s in group], axis=1) for group in groups]
        by_gate.append([split(s, steps, axis=0) for s in stacks])
        by_state.append([None if s is None else split(s, steps, axis=0) for s in of_state])
    given, dzs = [split(d, steps, axis=0) for d in given], []
    back = reshape(reshape(swap_axes(R), (-1,)), (R.shape[0], R.shape[2], R.shape[1]))       # in rows, which products read fastest
    ds = [d + part[-1] for d, part in zip(ds, given)]
    for t in reversed(range(steps)):
        wide = [expand_dims(d, 1) for d in ds]
        dz = [_combine([part[group][t] for part in by_gate], wide) for group in range(len(by_gate[0]))]
        dzs.append(dz)
        ds = [_combine([None if row[j] is None else row[j][t] for row in by_state], ds) for j in range(S)]
        if t and not resets:
            ds = [part[t - 1] if d is None else d + part[t - 1] for d, part in zip(ds, given)]
        ds[0] = _add_back(ds[0], reshape(dz[0], (batch, n * width)), back)
        ds = [part[t].zeros_like() if d is None else d for d, part in zip(ds, given)]
        if resets:
            ds = [d * keep[0][t] for d in ds]
            ds = [d + part[t - 1] for d, part in zip(ds, given)] if t else ds
    joined = [concat(part[::-1], axis=0) for part in zip(*dzs)]
    flat = [reshape(part, (steps * batch, -1)) for part in joined]
    return [flat[0] if len(flat) == 1 else concat(flat, axis=-1), _matrix_grad(before[0], flat[0], R), *ds]


def _rows(x, start, stop):
    """Steps of x (B, L, ...), one below the other: (T B, ...)."""
    return reshape(permute_dims(cut(x, start, stop, axis=1), (1, 0, 2)), ((stop - start) * x.shape[0], x.shape[2]))


def _back_in_time(x, batch):
    """The way back from `_rows`: (T B, D) to (B, T, D)."""
    return permute_dims(reshape(x, (-1, batch, x.shape[1])), (1, 0, 2))


def _brought(x, weight, bias):
    """What rows of x bring to the gates: weight x + bias, or x itself without a weight."""
    if weight is None:
        return x
    product = swap_axes(weight)
    return matmul(x, product) if bias is None else addmm(bias, x, product)


def _add(total_, more):
    return more if total_ is None else total_ + more


def _rule(g, out, x, weight, bias, R, *state, cell, chunk, resets=False):
    S, (batch, length, _), walk = cell.states, x.shape, fused(_walk_back, x.backend, cell, resets)
    keep, state = (state[:1], state[1:]) if resets else ((), state)
    histories = out[:S]                                  # each part of the state after every step
    given, ds, dR, d_weight, d_bias, done = g[:S], g[S:], None, None, None, []
    dx = Joined(length, any(t is not None and t.node is not None for t in (*g, x, weight, bias, R, *state)))
    for start in reversed(range(0, length, chunk)):
        stop = min(start + chunk, length)
        piece = _rows(x, start, stop)
        if done:
            piece, = after([piece], done)
        before = [_rows(part, start - 1, stop - 1) if start else concat([first, _rows(part, 0, stop - 1)], axis=0)
                  for first, part in zip(state, histories)]
        dz, more, *ds = walk(_brought(piece, weight, bias), R, *(_rows(k, start, stop) for k in keep), *before, *(_rows(d, start, stop) for d in given), *ds)
        dR = _add(dR, more)
        if weight is not None:
            d_weight = _add(d_weight, matmul(swap_axes(dz), piece))
            d_bias = None if bias is None else _add(d_bias, total(dz, axis=0))
            dz = matmul(dz, weight)
        dx.put(start, _back_in_time(dz, batch))
        done = [t for t in (dz, dR, d_weight, d_bias, *ds) if t is not None]
    return [dx.get(), d_weight, d_bias, dR, *(None for _ in keep), *ds]


@op(public="gated_scan", vjp=_rule, owns_gradient=True)
def gated_scan_rows(x, weight, bias, R, *state, cell, chunk, resets=False):
    """Native form of `gated_scan`, all in one dtype; with `resets` the state is preceded by what it is multiplied with before each step,
    (B, L, 1), a constant to the gradient. Returns the states (B, L, D) after every step, part by part, then the last ones.

    The gradient reads the histories of all parts, and is differentiable in them: that is how its own gradient goes back in time.
    """
    walk, (batch, length, _), found = fused(_walk, x.backend, cell, resets), x.shape, []
    keep, state = (state[:1], state[1:]) if resets else ((), state)
    histories = [Joined(length) for _ in state]
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        piece = _rows(x, start, stop)
        if start:
            piece, = after([piece], found)
        found = walk(_brought(piece, weight, bias), R, *(_rows(k, start, stop) for k in keep), *state)
        state = [cut(part, part.shape[0] - batch, part.shape[0], axis=0) for part in found]
        for history, part in zip(histories, found):
            history.put(start, _back_in_time(part, batch))
    return (*(history.get() for history in histories), *state)


def gated_scan(cell: GatedCell, x: EmberTensor, R: EmberTensor, initial: tuple | None = None, *, weight: EmberTensor | None = None,
               bias: EmberTensor | None = None, reset: EmberTensor | None = None, chunk: int = 64) -> tuple[EmberTensor, tuple]:
    """(y, last state) of the recurrence above.

    Args:
        cell: one of `ember_ml.ops.recurrence.cells`, or another elementwise one; G gates, n of them recurrent.
        x: (B, L, G D), L >= 1: what the input brings to each gate, biases included, gate after gate.
        R: (H, dh, n dh) with H dh = D: a block of its own for each of H heads, columns gate after gate.
        initial: the state's parts, (B, D) each; default zero.
        weight: (G D, J). With it x is (B, L, J), what a layer is given, and weight x + bias what that brings to the gates: formed chunk
            by chunk, since for all steps at once it would be G times the output. bias: (G D,), only with a weight.
        reset: bool (B, L): where true, the state is zero before the step.
        chunk: steps whose gates and derivatives the gradient holds at once.

    Returns: y (B, L, D) in x's dtype, and the last state in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    check_tensors(cell.name, chunk=chunk, x=x, R=R, weight=weight, bias=bias)
    if R.ndim != 3 or R.shape[2] != cell.recurrent * R.shape[1]:
        raise ShapeError(f"{cell.name}: expected R of shape (heads, head_dim, {cell.recurrent} head_dim), got {R.shape}")
    width = R.shape[0] * R.shape[1]
    wide = cell.gates * width
    if x.ndim != 3 or (weight is None and x.shape[2] != wide):
        raise ShapeError(f"{cell.name}: expected x of shape (batch, length >= 1, {cell.gates} x {width}), got {x.shape}")
    if weight is not None and weight.shape != (wide, x.shape[2]):
        raise ShapeError(f"{cell.name}: expected weight of shape {(wide, x.shape[2])}, got {weight.shape}")
    if bias is not None and (weight is None or bias.shape != (wide,)):
        raise ShapeError(f"{cell.name}: expected bias of shape {(wide,)}, beside a weight; got {bias.shape}"
                         + (" without one" if weight is None else ""))
    batch = x.shape[0]
    kind = state_dtype(x.dtype)
    check_state(cell.name, initial, ((batch, width),) * cell.states)
    if initial is None:
        initial = [zeros((batch, width), kind, like=x)] * cell.states
    brought = [None if t is None else t.astype(kind) for t in (weight, bias)]
    keep = kept(cell.name, reset, x, kind)
    out = gated_scan_rows(x.astype(kind), *brought, R.astype(kind), *keep, *[s.astype(kind) for s in initial], cell=cell, chunk=chunk,
                          resets=reset is not None)
    return out[0].astype(x.dtype), out[cell.states:]
