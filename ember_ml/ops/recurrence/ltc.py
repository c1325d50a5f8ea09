"""Liquid time-constant networks: neurons with leak and conductance synapses, a few implicit steps of their equation a position.

    c_i dv_i/dt = gleak_i (vleak_i - v_i) + sum_j s_ji (erev_ji - v_i),   s_ji = w_ji sigmoid(sigma_ji (v_j - mu_ji)),

with synapses from the inputs likewise. One of n semi-implicit Euler steps over the elapsed time T:

    v <- (c v + T/n (gleak vleak + sum_j s_ji erev_ji)) / (c + T/n (gleak + sum_j s_ji + eps))

which leaves v as it is where no time has passed.

Source: Hasani et al. 2021, Liquid Time-constant Networks, algorithm 1; Lechner et al. 2020, Neural Circuit Policies.

Backpropagation through time by hand, chunk by chunk from the end: the potentials before every Euler step are computed again, then one
step back needs the openness of the synapses (B, N, N) and two products with it; the gradients of the synapses' parameters are taken for all
steps of a chunk at once.
"""

from __future__ import annotations

from functools import lru_cache, partial

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import sigmoid
from ember_ml.ops.creation import zeros
from ember_ml.ops.declare import op
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.checks import check_tensors, kept
from ember_ml.ops.recurrence.chunks import after, over_chunks, over_steps
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.recurrence.mixed_memory import Memory, with_memory
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, permute_dims, reshape, split, squeeze, stack, swap_axes
from ember_ml.tensor import EmberTensor

#: numbers of one (batch, neurons, neurons) array of all Euler steps that the gradient may hold: 4 MiB in float32
WORKSPACE = 1 << 20

Synapses = tuple[EmberTensor, EmberTensor, EmberTensor, EmberTensor]


def _matrices(sigma, mu, w, erev, dt=1.0):
    """(sigma and sigma mu by target, (N, J); dt w erev and dt w side by side, (N, J, 2)) of parameters (J, N).

    The first two are cut from one array, so that they and all that is computed with them lie in the order of their axes.
    """
    slope, shift = split(stack([swap_axes(sigma), swap_axes(sigma * mu)]), 2, axis=0)
    return squeeze(slope, 0), squeeze(shift, 0), stack([swap_axes(w * erev), swap_axes(w)], axis=-1) * dt


def _open(v, slope, shift):
    """How far each synapse is open: sigmoid(sigma (v_j - mu)), (R, N, J) for sources v (1, R, J)."""
    return sigmoid(reshape(v, (v.shape[1], 1, v.shape[2])) * slope - shift)


def _sums(s, both):
    """(sum of w erev s, sum of w s) over the sources, side by side: (2, R, N)."""
    return permute_dims(matmul(permute_dims(s, (1, 0, 2)), both), (2, 1, 0))


def _euler(v, push, hold, dt, c, s, both):
    """(the potentials after a step from v whose synapses are open by s, its divisor): (c v + push + pull) / (hold + conductance).

    All (1, B, N), so that no axis comes or goes.
    """
    sums = _sums(s, both)
    pull, conductance = split(sums if dt is None else sums * dt, 2, axis=0)
    divisor = hold + conductance
    return (c * v + (push + pull)) / divisor, divisor


def _position(state, xs, weights, *, unfolds):
    """All Euler steps of a position, as `over_steps` takes it. Without dt its length is in the matrices."""
    (v, push, hold, *dt), (c, slope, shift, both) = [expand_dims(x, 0) for x in (*state, *xs)], weights
    for _ in range(unfolds):
        v, _ = _euler(v, push, hold, dt[0] if dt else None, c, _open(v, slope, shift), both)
    v = squeeze(v, 0)
    return (v,), v


def _positions(x):
    """x (B, T, n) as a list of positions (1, B, n)."""
    return split(permute_dims(x, (1, 0, 2)), x.shape[1], axis=0)


def _back(flat, *, unfolds, timed):
    """One chunk backwards: push, hold and perhaps dt (B, T, .), the potentials before it (B, N), c, sigma, mu, w, erev, dy (B, T, N) and
    the cotangent of the last potentials -> cotangents of all but dy.
    """
    xs, (v, c, *synapses, dy, d) = flat[:2 + timed], flat[2 + timed:]
    sigma, mu, w, erev = synapses
    scale, positions, dys = 1.0 if timed else 1.0 / unfolds, [_positions(x) for x in xs], _positions(dy)
    v, d = expand_dims(v, 0), expand_dims(d, 0)
    slope, shift, both = _matrices(*synapses, scale)
    before, later, opened, divisors = [], [], [], []
    for push, hold, *dt in zip(*positions):
        for _ in range(unfolds):
            opened.append(_open(v, slope, shift))
            before.append(v)
            v, divisor = _euler(v, push, hold, dt[0] if timed else None, c, opened[-1], both)
            later.append(v)
            divisors.append(divisor)
    s = stack(opened)                                       # (T unfolds, B, N, J)
    slopes, back = split(s - s * s, s.shape[0], axis=0), swap_axes(both)
    leads, into, changes = [], [], []
    for k in reversed(range(s.shape[0])):
        if (k + 1) % unfolds == 0:
            d = d + dys[k // unfolds]
        q = d / divisors[k]
        pair = [q, -(q * later[k])]
        g = concat([reshape(x * positions[2][k // unfolds] if timed else x, (*v.shape[1:], 1)) for x in pair], axis=2)
        g = permute_dims(g, (1, 0, 2))                      # (N, B, 2)
        dz = permute_dims(matmul(g, back), (1, 0, 2)) * squeeze(slopes[k], 0)
        d = c * q + total(dz * slope, axis=1)
        leads.append(q)
        into.append(g)
        changes.append(dz)
    q, dz, v, later = concat(leads[::-1]), stack(changes[::-1]), concat(before), concat(later)
    neurons, sources = s.shape[2:]
    d_both = matmul(swap_axes(concat(into[::-1], axis=1)), permute_dims(reshape(s, (-1, neurons, sources)), (1, 0, 2))) * scale
    d_we, d_w = (swap_axes(squeeze(x, 1)) for x in split(d_both, 2, axis=1))                    # of (N, 2, J)
    of_shift, of_slope = swap_axes(total(dz, axis=(0, 1))), swap_axes(total(dz * expand_dims(v, 2), axis=(0, 1)))
    held = -(q * later)
    rates = [q, held]
    if timed:
        pull, conductance = (reshape(x, q.shape) for x in split(_sums(reshape(s, (-1, neurons, sources)), both), 2, axis=0))
        by_time = q * pull + held * conductance
        rates.append(by_time if xs[2].shape[-1] == neurons else total(by_time, axis=-1, keepdims=True))
    d_xs = [permute_dims(total(reshape(r, (-1, unfolds, *r.shape[1:])), axis=1), (1, 0, 2)) for r in rates]
    return [*d_xs, squeeze(d, 0), total(q * v, axis=(0, 1)), of_slope - mu * of_shift, -(sigma * of_shift), d_w + erev * d_we, w * d_we]


@lru_cache(maxsize=64)
def _walk_back(backend, unfolds, timed):
    """`_back`, compiled by an engine that compiles whole steps: fewer launches."""
    fn = partial(_back, unfolds=unfolds, timed=timed)
    if backend.runtime.compiles != "step":
        return fn
    native = backend.runtime.compile(lambda *raw: [y.data for y in fn([EmberTensor(a, backend) for a in raw])])
    return lambda flat: [EmberTensor(y, backend) for y in native(*[x.data for x in flat])]


def _rule(g, out, *tensors, unfolds, timed, chunk):
    xs, (v, *weights) = tensors[:2 + timed], tensors[2 + timed:]
    length, history, d, done = xs[0].shape[1], out[0], g[1], []
    walk, found, totals = _walk_back(v.backend, unfolds, timed), [], None
    for start in reversed(range(0, length, chunk)):
        stop = min(start + chunk, length)
        pieces = [cut(x, start, stop, axis=1) for x in (*xs, g[0])]
        *pieces, dy = after(pieces, done) if done else pieces
        before = squeeze(cut(history, start - 1, start, axis=1), 1) if start else v
        done = walk([*pieces, before, *weights, dy, d])
        timed_part, (d, *rest) = done[:2 + timed], done[2 + timed:]
        found.append(timed_part)
        totals = rest if totals is None else [a + b for a, b in zip(totals, rest)]
    joined = [parts[0] if len(parts) == 1 else concat(parts[::-1], axis=1) for parts in zip(*found)]
    return [*joined, d, *totals]


@op(public="ltc", vjp=_rule, owns_gradient=True)
def ltc_rows(*tensors, unfolds, timed, chunk):
    """Native form of `ltc`, after its sensory synapses, all in one dtype.

    push = dt (gleak vleak + their current) and hold = c + dt (gleak + their conductance + eps), (B, L, N), dt the length of an Euler step;
    with `timed` dt itself, (B, L, 1 or N), which else is 1 / unfolds; v (B, N); c, sigma, mu, w, erev.
    """
    xs, (v, c, *synapses) = tensors[:2 + timed], tensors[2 + timed:]
    walk = over_steps(partial(_position, unfolds=unfolds))
    state, found, weights = (v,), [], (c, *_matrices(*synapses, 1.0 if timed else 1.0 / unfolds))
    for start in range(0, xs[0].shape[1], chunk):
        pieces = [cut(x, start, min(start + chunk, x.shape[1]), axis=1) for x in xs]
        state, (y,) = walk(state, after(pieces, [found[-1]]) if found else pieces, weights)
        found.append(y)
    return (found[0] if len(found) == 1 else concat(found, axis=1)), state[0]


def _from_inputs(_carry, xs, weights):
    """Current and conductance of the sensory synapses, as `over_chunks` takes it."""
    x, = xs
    slope, shift, both = _matrices(*weights)
    rows = _sums(_open(reshape(x, (1, -1, x.shape[-1])), slope, shift), both)
    return (), tuple(reshape(r, (*x.shape[:2], -1)) for r in split(rows, 2, axis=0))


def ltc(x: EmberTensor, sensory: Synapses, synapses: Synapses, c: EmberTensor, gleak: EmberTensor, vleak: EmberTensor,
        v: EmberTensor | None = None, elapsed: EmberTensor | None = None, *, memory: Memory | None = None, unfolds: int = 6,
        eps: float = 1e-8, reset: EmberTensor | None = None) -> tuple[EmberTensor, ...]:
    """(potentials after every position, last potentials), and the memory's last c if there is one.

    Args:
        x: (B, L, J), inputs, L >= 1.
        sensory: sigma, mu, w, erev of the synapses from inputs, (J, N) each; a missing synapse has w = 0.
        synapses: the same between neurons, (N, N), from the first to the second axis.
        c, gleak, vleak: (N,), capacitance, leak conductance, resting potential; c and gleak positive.
        v: (B, N), the potentials before the first position; default zero.
        elapsed: (B, L, 1) or (B, L, N), time up to each position, not negative; default 1.
        memory: an LSTM's step before each position's, see `mixed_memory`.
        unfolds: Euler steps a position. eps: added to the divisor.
        reset: bool (B, L): where true, the state is zero before the position.

    Returns: (B, L, N) in x's dtype, and (B, N) each in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    check_tensors("ltc", x=x, c=c, gleak=gleak, vleak=vleak, v=v, elapsed=elapsed)
    if x.ndim != 3:
        raise ShapeError(f"ltc: expected x of shape (batch, length >= 1, inputs), got {x.shape}")
    (batch, length, inputs), n = x.shape, c.shape[-1]
    parts = ("sigma", "mu", "w", "erev")
    for name, t, shape in [*((f"sensory {p}", t, (inputs, n)) for p, t in zip(parts, sensory)),
                           *((f"synapses' {p}", t, (n, n)) for p, t in zip(parts, synapses)),
                           ("c", c, (n,)), ("gleak", gleak, (n,)), ("vleak", vleak, (n,)), ("v", v, (batch, n))]:
        if t is not None and t.shape != shape:
            raise ShapeError(f"ltc: expected {name} of shape {shape}, got {t.shape}")
    if elapsed is not None and elapsed.shape not in ((batch, length, 1), (batch, length, n)):
        raise ShapeError(f"ltc: expected elapsed of shape {(batch, length, 1)} or {(batch, length, n)}, got {elapsed.shape}")
    if memory is not None:
        memory.check("ltc", batch, length, n)
    kind = state_dtype(x.dtype)
    first = zeros((batch, n), kind, like=x) if v is None else v.astype(kind)
    sensory, synapses = ([t.astype(kind) for t in group] for group in (sensory, synapses))
    c, gleak, vleak = (t.astype(kind) for t in (c, gleak, vleak))
    _, (current, conductance) = over_chunks(_from_inputs, (), (x.astype(kind),), sensory, max(1, WORKSPACE // max(1, batch * n * inputs)))
    dt = 1.0 / unfolds if elapsed is None else elapsed.astype(kind) * (1.0 / unfolds)
    xs = [dt * (gleak * vleak + current), c + dt * (gleak + conductance + eps), *([] if elapsed is None else [dt])]
    chunk = max(1, min(length, WORKSPACE // max(1, batch * n * n * unfolds)))
    keep = kept("ltc", reset, x, kind)
    if memory is None and reset is None:
        y, last = ltc_rows(*xs, first, c, *synapses, unfolds=unfolds, timed=elapsed is not None, chunk=chunk)
        return y.astype(x.dtype), last
    step, state, weights = partial(_position, unfolds=unfolds), [first], [c, *_matrices(*synapses, 1.0 if elapsed is not None else dt)]
    if memory is not None:
        step, state, xs = with_memory(step), [first, memory.c.astype(kind)], [memory.gates.astype(kind), *xs]
        weights = [memory.matrix(kind), *weights]
    last, (y,) = over_chunks(over_steps(step, resets=reset is not None), state, [*xs, *keep], weights, chunk)
    return y.astype(x.dtype), *last
