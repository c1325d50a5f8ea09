"""Liquid time-constant networks: neurons with leak and conductance synapses, a few implicit steps of their equation a position.

    c_i dv_i/dt = gleak_i (vleak_i - v_i) + sum_j s_ji (erev_ji - v_i),   s_ji = w_ji sigmoid(sigma_ji (v_j - mu_ji)),

with synapses from the inputs likewise. One of n semi-implicit Euler steps over the elapsed time T:

    v <- (c v + T/n (gleak vleak + sum_j s_ji erev_ji)) / (c + T/n (gleak + sum_j s_ji + eps))

which leaves v as it is where no time has passed.

Source: Hasani et al. 2021, Liquid Time-constant Networks, algorithm 1; Lechner et al. 2020, Neural Circuit Policies.
"""

from __future__ import annotations

from functools import partial

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import sigmoid
from ember_ml.ops.creation import zeros
from ember_ml.ops.recurrence.chunks import over_chunks, over_steps
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.recurrence.mixed_memory import Memory, with_memory
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import expand_dims
from ember_ml.tensor import EmberTensor

#: numbers of one (batch, neurons, neurons) array of all steps and unfoldings that the gradient may hold: 4 MiB in float32
WORKSPACE = 1 << 20

Synapses = tuple[EmberTensor, EmberTensor, EmberTensor, EmberTensor]


def _synapses(v, sigma, mu, w, erev):
    """(sum of s erev, sum of s) at every target, for sources v (..., J) and parameters (J, I)."""
    active = w * sigmoid((expand_dims(v, -1) - mu) * sigma)
    return total(active * erev, axis=-2), total(active, axis=-2)


def _step(state, xs, weights, *, unfolds, eps):
    (v,), (current, conductance, elapsed) = state, xs
    c, gleak, vleak, *synapses = weights
    dt = elapsed * (1.0 / unfolds)
    drive = gleak * vleak + current
    load = gleak + conductance + eps
    for _ in range(unfolds):
        pull, open_ = _synapses(v, *synapses)
        v = (c * v + dt * (drive + pull)) / (c + dt * (load + open_))
    return (v,), v


def _chunk(carry, xs, weights, *, unfolds, eps):
    x, elapsed, *gates = xs
    sensory = weights[:4]
    current, conductance = _synapses(x, *sensory)          # of all steps at once: the inputs do not wait for the state
    step = partial(_step, unfolds=unfolds, eps=eps)
    walk = over_steps(with_memory(step) if gates else step)
    return walk(carry, (*gates, current, conductance, elapsed), weights[4:])


def ltc(x: EmberTensor, sensory: Synapses, synapses: Synapses, c: EmberTensor, gleak: EmberTensor, vleak: EmberTensor,
        v: EmberTensor | None = None, elapsed: EmberTensor | None = None, *, memory: Memory | None = None, unfolds: int = 6,
        eps: float = 1e-8) -> tuple[EmberTensor, ...]:
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

    Returns: (B, L, N) in x's dtype, and (B, N) each in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    if x.ndim != 3 or x.shape[1] == 0:
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
    time = zeros((batch, length, 1), kind, like=x) + 1.0 if elapsed is None else elapsed.astype(kind)
    weights = [t.astype(kind) for t in (*sensory, *synapses)]
    weights = [*weights[:4], *(t.astype(kind) for t in (c, gleak, vleak)), *weights[4:]]
    carry, xs = (first,), (x.astype(kind), time)
    if memory is not None:
        carry, xs = (first, memory.c.astype(kind)), (*xs, memory.gates.astype(kind))
        weights.insert(4, memory.matrix(kind))
    chunk = max(1, min(length, WORKSPACE // max(1, batch * n * (unfolds * n + inputs))))
    last, (y,) = over_chunks(partial(_chunk, unfolds=unfolds, eps=eps), carry, xs, weights, chunk)
    return y.astype(x.dtype), *last
