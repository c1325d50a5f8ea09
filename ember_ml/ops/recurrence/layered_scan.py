"""Recurrences whose step is a chain of small layers: a product with a matrix, then an elementwise function, as often as there are stages.

    v_0 = h_{t-1};   z_k = W_k v_k + a_{k,t},   v_{k+1}, m_{k,t} = update_k(z_k, m_{k,t-1}),   h_t = v_K

with a_k a bias or what the input brings at each step, and m_k the memory of a stage that has one. Backpropagation through time as in
`gated_scan`: of the forward pass h and the memories are kept; everything else follows from them again for a whole chunk of steps at
once, as do all derivatives of the elementwise functions and the gradients of matrices and biases. Step by step runs one product
with these derivatives and one with each W_k.

Source: Werbos 1990, Backpropagation Through Time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ember_ml.autodiff import tape
from ember_ml.ops.declare import op
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.cells import Parts
from ember_ml.ops.recurrence.chunks import Joined, after, fused, over_chunks, over_steps
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, permute_dims, reshape, split, squeeze, stack, swap_axes
from ember_ml.tensor import EmberTensor


@dataclass(frozen=True)
class Stage:
    """One layer of the chain.

    Args:
        gates: how many values z brings for each channel of its output.
        memory: 1 if it keeps something of its own, else 0.
        update: `(gates, memory, given) -> (v, *memory)`, tuples of tensors; elementwise in all of them. `given` is what the scan was given
            beside: the last stage's alone, for the others ().
    """

    gates: int
    memory: int
    update: Callable[[Parts, Parts, Parts], Parts]


@dataclass(frozen=True)
class Counts:
    """How the flat list of an op's tensors is divided. `fed`: the stage that x feeds; then x and its matrix come last."""

    stages: int
    state: int
    fed: int | None = None

    def divide(self, tensors):
        """(adds, weights, state, given)."""
        k, s = self.stages, self.state
        return tensors[:k], tensors[k:2 * k], tensors[2 * k:2 * k + s], tensors[2 * k + s:]

    def without_x(self, tensors):
        """(what `divide` takes, (x, its matrix) or ())."""
        return (tensors, ()) if self.fed is None else (tensors[:-2], tensors[-2:])


def _through(stages, adds, weights, state, given):
    """The state after a step (or after each of many side by side), and (v, gates, memory) that every stage took."""
    v, memories, seen, left = state[0], [], [], list(state[1:])
    for k, stage in enumerate(stages):
        gates = split(matmul(v, weights[k]) + adds[k], stage.gates, axis=-1)
        own, left = tuple(left[:stage.memory]), left[stage.memory:]
        seen.append((v, gates, own))
        v, *kept = stage.update(gates, own, given if k == len(stages) - 1 else ())
        memories += kept
    return [v, *memories], seen


def _each(x):
    """x (T, ...) step by step. A step is an axis of length one in front, so that no axis comes or goes."""
    return split(x, x.shape[0], axis=0)


def _walk(stages, counts, *flat):
    """One chunk: adds and given with time first or without time, the state (1, B, n) -> its parts after every step, (T, B, n)."""
    adds, weights, state, given = counts.divide(flat)
    tensors = [*adds, *given]
    walked, found = [_each(x) if x.ndim == 3 else None for x in tensors], []
    for t in range(next(x.shape[0] for x in adds if x.ndim == 3)):
        now = [x if steps is None else steps[t] for x, steps in zip(tensors, walked)]
        state, _ = _through(stages, now[:counts.stages], weights, state, now[counts.stages:])
        found.append(state)
    return [concat(part, axis=0) for part in zip(*found)]


def _slopes(stage, gates, own, given):
    """The derivatives of each output of a stage by its gates and its memory, for all steps at once: [(T, B, G, n)], [(T, B, n)]."""
    none, by_gates, by_memory = gates[0].zeros_like(), [], []
    for i in range(1 + stage.memory):
        def output(flat, i=i):
            return [stage.update(tuple(flat[:stage.gates]), tuple(flat[stage.gates:]), given)[i]]
        row = [none if s is None else s for s in tape.pull(output, [*gates, *own], [none.ones_like()])]
        by_gates.append(_each(stack(row[:stage.gates], axis=2)))
        by_memory.append([_each(s) for s in row[stage.gates:]])
    return by_gates, by_memory


def _back_through(stages, slopes, backs, ds, t):
    """One step back: the cotangents of the state after it -> (dz of each stage (1, B, G n), cotangents of the state before it)."""
    dv, memories, dzs, before = ds[0], list(ds[1:]), [], []
    for stage, (by_gates, by_memory), back in zip(reversed(stages), reversed(slopes), reversed(backs)):
        outputs = [dv, memories.pop()] if stage.memory else [dv]
        dz = _combined([s[t] for s in by_gates], [expand_dims(d, 2) for d in outputs])
        if stage.memory:
            before.append(_combined([s[0][t] for s in by_memory], outputs))
        dzs.append(reshape(dz, (1, dv.shape[1], -1)))
        dv = matmul(dzs[-1], back)
    return dzs[::-1], [dv, *reversed(before)]


def _combined(slopes, ds):
    found = slopes[0] * ds[0]
    return found if len(ds) == 1 else found + slopes[1] * ds[1]


def _walk_back(stages, counts, *flat):
    """One chunk backwards: adds, weights, the state before every step (T, B, n), given, then dy (T, B, N) and the cotangents of the last
    state (1, B, n) -> cotangents of adds (summed over steps where they have no time), weights and given, and of the first state.
    """
    dy, *ds = flat[len(flat) - 1 - counts.state:]
    adds, weights, before, given = counts.divide(flat[:len(flat) - 1 - counts.state])
    last, backs = counts.stages - 1, [swap_axes(w) for w in weights]
    _, seen = _through(stages, adds, weights, before, given)
    slopes = [_slopes(stage, gates, own, given if k == last else ()) for k, (stage, (_, gates, own)) in enumerate(zip(stages, seen))]
    dzs, dhs = [], []
    for t, dy_t in reversed(list(enumerate(_each(dy)))):
        ds[0] = ds[0] + dy_t
        dhs.append(ds[0])
        dz, ds = _back_through(stages, slopes, backs, ds, t)
        dzs.append(dz)
    d_adds, d_weights = [], []
    for add, rows, (v, _, _) in zip(adds, zip(*dzs), seen):
        dz = concat(rows[::-1], axis=0)
        rows = reshape(dz, (-1, dz.shape[-1]))
        d_adds.append(dz if add.ndim == 3 else total(rows, axis=0))
        d_weights.append(matmul(swap_axes(reshape(v, (-1, v.shape[-1]))), rows))
    d_given = []
    if given:
        _, gates, own = seen[last]
        d_given = tape.pull(lambda flat: [stages[last].update(gates, own, tuple(flat))[0]], list(given), [concat(dhs[::-1], axis=0)])
    return [*d_adds, *d_weights, *d_given, *ds]


def _time_second(x):
    return permute_dims(x, (1, 0, 2))


def _cut(x, start, stop):
    """Some steps of a tensor with time on axis 1, time first; a tensor without time as it is."""
    return _time_second(cut(x, start, stop, axis=1)) if x.ndim == 3 else x


def _fed(adds, counts, x):
    """The adds of a chunk, with what x (piece, matrix) brings in the place of the bias of the stage that it feeds."""
    if not x:
        return adds
    piece, w = x
    return [matmul(piece, swap_axes(w)) + a if k == counts.fed else a for k, a in enumerate(adds)]


def _fed_back(found, counts, x):
    """Cotangents of a chunk, those of what x brings turned into those of the bias (in its place), of x and of its matrix (last)."""
    if not x:
        return found
    (piece, w), dz = x, found[counts.fed]
    rows = reshape(dz, (-1, dz.shape[-1]))
    d_w = matmul(swap_axes(rows), reshape(piece, (-1, piece.shape[-1])))
    return [*found[:counts.fed], total(rows, axis=0), *found[counts.fed + 1:], matmul(dz, w), d_w]


def _rule(g, out, *tensors, stages, counts, chunk):
    tensors, x = counts.without_x(tensors)
    adds, weights, state, given = counts.divide(tensors)
    K, S, length = counts.stages, counts.state, out[0].shape[1]
    walk, dy, ds, done = fused(_walk_back, out[0].backend, stages, counts), g[0], [expand_dims(d, 0) for d in g[S:]], []
    taped = any(t is not None and t.node is not None for t in (*g, *tensors, *x))
    grads = [Joined(length, taped) if t.ndim == 3 else None for t in (*adds, *weights, *given, *x)]
    for start in reversed(range(0, length, chunk)):
        stop = min(start + chunk, length)
        pieces = [_cut(t, start, stop) for t in (*adds, *given, dy, *x)]
        pieces = after(pieces, done) if done else pieces
        piece = pieces[K + len(given) + 1:]
        before = [_cut(h, start - 1, stop - 1) if start else concat([expand_dims(first, 0), _cut(h, 0, stop - 1)], axis=0)
                  for first, h in zip(state, out)]
        found = walk(*_fed(pieces[:K], counts, piece), *weights, *before, *pieces[K:K + len(given) + 1], *ds)
        ds, done = found[len(found) - S:], _fed_back(list(found[:len(found) - S]), counts, piece)
        for i, part in enumerate(done):
            if isinstance(grads[i], Joined):
                grads[i].put(start, _time_second(part))
            else:
                grads[i] = part if grads[i] is None else grads[i] + part
        done = [*done, *ds, *(t for t in grads if isinstance(t, EmberTensor))]
    grads = [t.get() if isinstance(t, Joined) else t for t in grads]
    k = 2 * K
    return [*grads[:k], *(squeeze(d, 0) for d in ds), *grads[k:]]


@op(vjp=_rule, owns_gradient=True)
def layered_scan_rows(*tensors, stages, counts, chunk):
    """Native form of `layered_scan`: adds, weights, state, given, and x with its matrix if a stage is fed, in a row. Returns each part of
    the state after every step, (B, L, n), then the last ones; of the histories only that of h is an output to differentiate.
    """
    tensors, x = counts.without_x(tensors)
    adds, weights, state, given = counts.divide(tensors)
    walk, found, K = fused(_walk, tensors[0].backend, stages, counts), [], counts.stages
    state = [expand_dims(s, 0) for s in state]
    length = next(a.shape[1] for a in (*adds, *x) if a.ndim == 3)
    histories = [Joined(length) for _ in state]
    for start in range(0, length, chunk):
        now = [_cut(t, start, min(start + chunk, length)) for t in (*adds, *given, *x)]
        now = after(now, found) if found else now
        found = walk(*_fed(now[:K], counts, now[K + len(given):]), *weights, *state, *now[K:K + len(given)])
        state = [cut(part, part.shape[0] - 1, part.shape[0], axis=0) for part in found]
        for history, part in zip(histories, found):
            history.put(start, _time_second(part))
    return (*(history.get() for history in histories), *(squeeze(s, 0) for s in state))


def _walk_with_resets(stages, adds, weights, state, given, fed, keep, chunk):
    """The same recurrence step by step, whose gradient runs each chunk again: what has time is cut, the rest comes as weights."""
    K, (k, *x) = len(stages), fed or (None,)
    tensors = [*adds, *given, *x[:1]]
    timed = [i for i, t in enumerate(tensors) if t.ndim == 3]
    still = [i for i in range(len(tensors)) if i not in timed]

    def step(state, xs, rest):
        now = dict(zip(timed + still, [*xs, *rest[len(rest) - len(still):]]))
        a = [now[i] for i in range(K)]
        if x:
            a[k] = matmul(now[len(tensors) - 1], swap_axes(rest[K])) + a[k]
        after, _ = _through(stages, a, rest[:K], state, tuple(now[K + i] for i in range(len(given))))
        return tuple(after), after[0]

    last, (y,) = over_chunks(over_steps(step, resets=True), state, [*(tensors[i] for i in timed), *keep],
                             [*weights, *x[1:], *(tensors[i] for i in still)], chunk)
    return y, last


def layered_scan(stages: Sequence[Stage], adds: Sequence[EmberTensor], weights: Sequence[EmberTensor], state: Sequence[EmberTensor],
                 given: Sequence[EmberTensor] = (), *, fed: tuple[int, EmberTensor, EmberTensor] | None = None,
                 keep: Sequence[EmberTensor] = (), chunk: int = 64) -> tuple[EmberTensor, tuple]:
    """(h after every step, last state) of the recurrence above, for checked shapes of one dtype.

    Args:
        stages: the chain, at least one.
        adds: a_k of each stage, (B, L, G n) or (G n,); at least one has time, unless a stage is fed.
        weights: W_k, (n of the stage before, G n), gate after gate.
        state: h (B, N), and the memories (B, n) of the stages that have one, in their order.
        given: tensors for the last stage's update, (B, L, 1), (B, L, n) or (n,).
        fed: (k, x (B, L, J), W_x (G n, J)): stage k has W_x x + a_k, formed chunk by chunk; for all steps at once it would be many times x.
        keep: [what the state is multiplied with before each step, (B, L, 1)], a constant to the gradient, or [].
        chunk: steps whose gates and derivatives the gradient holds at once.
    """
    if keep:
        return _walk_with_resets(stages, adds, weights, state, given, fed, keep, chunk)
    k, *x = fed or (None,)
    counts = Counts(len(stages), len(state), k)
    out = layered_scan_rows(*adds, *weights, *state, *given, *x, stages=tuple(stages), counts=counts, chunk=chunk)
    return out[0], out[len(state):]
