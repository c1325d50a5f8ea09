"""Recurrences without a parallel form: RNN, LSTM, GRU, sLSTM, by one loop over time and backpropagation through it.

    z_t = x_t + R h_{t-1};   state_t = update(z_t, state_{t-1}),  elementwise;   y_t = h_t

The states are kept (those beside h add less than x has itself), gates and derivatives are computed again, chunk by chunk from
the end. Since the update is elementwise, its derivative is one number for each pair of an output and an input and does not
depend on the cotangents: it is taken for all steps of a chunk at once. What runs step by step is then one product with
these numbers and one with R; the gradient of R is one product over the chunk.

Source: Werbos 1990, Backpropagation Through Time.
"""

from __future__ import annotations

from functools import lru_cache

from ember_ml.autodiff import tape
from ember_ml.errors import ShapeError
from ember_ml.ops.creation import zeros
from ember_ml.ops.declare import op
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.cells import GatedCell
from ember_ml.ops.recurrence.chunks import after
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.shape import concat, cut, expand_dims, permute_dims, reshape, split, squeeze, stack, swap_axes
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


def _matrix_grad(h, dr, R):
    """The gradient of R from all steps: h (T, B, D) and dr (T, B, n D)."""
    heads, dh, _ = R.shape
    return matmul(permute_dims(reshape(h, (-1, heads, dh)), (1, 2, 0)), _heads_first(dr, heads, dh))


def _gates(cell, x, h, R):
    """x + R h, cut into gates."""
    r = _project(h, R)
    if cell.recurrent < cell.gates:
        r = concat([r, cut(x, 0, x.shape[-1] - r.shape[-1], axis=-1).zeros_like()], axis=-1)
    return split(x + r, cell.gates, axis=-1)


def _compiled(backend, fn):
    """`fn(*tensors) -> tensors`, fused by an engine that compiles whole steps: fewer launches a step."""
    if backend.runtime.compiles != "step":
        return fn
    native = backend.runtime.compile(lambda *raw: [y.data for y in fn(*[EmberTensor(a, backend) for a in raw])])
    return lambda *tensors: [EmberTensor(y, backend) for y in native(*[t.data for t in tensors])]


@lru_cache(maxsize=64)
def _forward(cell: GatedCell, backend):
    """One step: (x_t, R, *state) -> state. A step of time is an axis of length one in front, so that no axis comes or goes."""
    return _compiled(backend, lambda x, R, *state: cell.update(_gates(cell, x, state[0], R), state))


@lru_cache(maxsize=64)
def _backward(cell: GatedCell, backend):
    """One step back: (back, dy, *d state, *slopes) -> (dz (1, B, G, D), *d state before it).

    A slope is (1, B, G + S, D), one derivative of a part of the new state by every gate and every part of the old one; cotangents are
    (1, B, 1, D): one product serves all of them.
    """
    S, G = cell.states, cell.gates

    def step(back, dy, *rest):
        ds = [rest[0] + dy, *rest[1:S]]
        found = None
        for slope, d in zip(rest[S:], ds):
            found = slope * d if found is None else found + slope * d
        dz = cut(found, 0, G, axis=2)
        dr = reshape(dz if cell.recurrent == G else cut(dz, 0, cell.recurrent, axis=2), (1, dz.shape[1], -1))
        before = [cut(found, G + i, G + i + 1, axis=2) for i in range(S)]
        before[0] = before[0] + expand_dims(_project_back(dr, back), 2)
        return [dz, *before]
    return _compiled(backend, step)


def _steps(x):
    return split(x, x.shape[0], axis=0)


def _slopes(cell, gates, state):
    """d new state_i / d (gates, state)_j for all steps at once: for each i a tensor (T, B, G + S, D)."""
    def part(i):
        return lambda given: [cell.update(tuple(given[:cell.gates]), tuple(given[cell.gates:]))[i]]

    one, none = state[0].ones_like(), state[0].zeros_like()
    rows = [tape.pull(part(i), [*gates, *state], [one]) for i in range(cell.states)]
    return [stack([none if s is None else s for s in row], axis=2) for row in rows]


def _time_first(x, start, stop):
    return permute_dims(cut(x, start, stop, axis=1), (1, 0, 2))


def _rule(g, out, x, R, *state, cell, chunk):
    S, length = cell.states, x.shape[1]
    histories = out[:S]                                  # each part of the state after every step
    dy, ds, dR = g[0], [reshape(d, (1, d.shape[0], 1, -1)) for d in g[S:]], None
    step, back, d_x, done = _backward(cell, x.backend), swap_axes(R), [], []
    for start in reversed(range(0, length, chunk)):
        stop = min(start + chunk, length)
        piece = _time_first(x, start, stop)
        if done:
            piece, = after([piece], done)
        before = [_time_first(part, start - 1, stop - 1) if start else
                  concat([expand_dims(first, 0), _time_first(part, 0, stop - 1)], axis=0)
                  for first, part in zip(state, histories)]
        slopes = [_steps(s) for s in _slopes(cell, _gates(cell, piece, before[0], R), before)]
        dys, dz = _steps(expand_dims(_time_first(dy, start, stop), 2)), []
        for dy_t, *slope in reversed(list(zip(dys, *slopes))):
            dz_t, *ds = step(back, dy_t, *ds, *slope)
            dz.append(dz_t)
        dz = reshape(concat(dz[::-1], axis=0), piece.shape)
        more = _matrix_grad(before[0], cut(dz, 0, cell.recurrent * R.shape[0] * R.shape[1], axis=-1), R)
        dR = more if dR is None else dR + more
        d_x.append(permute_dims(dz, (1, 0, 2)))
        done = [d_x[-1], dR, *ds]
    return [d_x[0] if len(d_x) == 1 else concat(d_x[::-1], axis=1), dR, *(reshape(d, s.shape) for d, s in zip(ds, state))]


@op(vjp=_rule, owns_gradient=True)
def gated_scan_rows(x, R, *state, cell, chunk):
    """Native form of `gated_scan`, all in one dtype. Returns the states (B, L, D) after every step, part by part, then the last ones.

    The gradient reads the histories of all parts; only that of h is an output to differentiate.
    """
    step, pieces = _forward(cell, x.backend), []
    state = [expand_dims(s, 0) for s in state]
    for start in range(0, x.shape[1], chunk):
        piece = _time_first(x, start, min(start + chunk, x.shape[1]))
        if start:
            piece, = after([piece], pieces[-1])
        found = []
        for x_t in _steps(piece):
            state = step(x_t, R, *state)
            found.append(state)
        pieces.append([permute_dims(concat(part, axis=0), (1, 0, 2)) for part in zip(*found)])
    histories = pieces[0] if len(pieces) == 1 else [concat(part, axis=1) for part in zip(*pieces)]
    return (*histories, *(squeeze(s, 0) for s in state))


def gated_scan(cell: GatedCell, x: EmberTensor, R: EmberTensor, initial: tuple | None = None, *,
               chunk: int = 64) -> tuple[EmberTensor, tuple]:
    """(y, last state) of the recurrence above.

    Args:
        cell: one of `ember_ml.ops.recurrence.cells`, or another elementwise one; G gates, n of them recurrent.
        x: (B, L, G D), L >= 1: what the input brings to each gate, biases included, gate after gate.
        R: (H, dh, n dh) with H dh = D: a block of its own for each of H heads, columns gate after gate.
        initial: the state's parts, (B, D) each; default zero.
        chunk: steps whose gates and derivatives the gradient holds at once.

    Returns: y (B, L, D) in x's dtype, and the last state in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    if R.ndim != 3 or R.shape[2] != cell.recurrent * R.shape[1]:
        raise ShapeError(f"{cell.name}: expected R of shape (heads, head_dim, {cell.recurrent} head_dim), got {R.shape}")
    width = R.shape[0] * R.shape[1]
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != cell.gates * width:
        raise ShapeError(f"{cell.name}: expected x of shape (batch, length >= 1, {cell.gates} x {width}), got {x.shape}")
    batch = x.shape[0]
    kind = state_dtype(x.dtype)
    if initial is None:
        initial = [zeros((batch, width), kind, like=x)] * cell.states
    if len(initial) != cell.states or any(s.shape != (batch, width) for s in initial):
        raise ShapeError(f"{cell.name}: expected an initial state of {cell.states} parts {(batch, width)}, got "
                         f"{[s.shape for s in initial]}")
    out = gated_scan_rows(x.astype(kind), R.astype(kind), *[s.astype(kind) for s in initial], cell=cell, chunk=chunk)
    return out[0].astype(x.dtype), out[cell.states:]
