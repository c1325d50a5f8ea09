"""A recurrence that is reset is the recurrence run on each piece by itself: values and gradients, with chunks shorter and longer than a piece."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import ops
from ember_ml.ops.recurrence import cells
from tests.nn._help import close, get, numbers

#: first step and length of the pieces of each row; the first piece of row 0 goes on from the initial state
PIECES = [[(0, 4), (4, 1), (5, 6)], [(0, 1), (1, 5), (6, 5)]]
RESET = np.zeros((2, 11), bool)
RESET[0, [4, 5]] = RESET[1, [0, 1, 6]] = True
B, L, D, N = 2, 11, 2, 3


def real(seed, *shape):
    return numbers(seed, *shape) * 0.7


def positive(seed, *shape):
    return np.random.default_rng(seed).uniform(0.1, 0.9, shape)


#: name -> (op on (inputs over time, weights, initial state, reset, chunk) giving (y, *state), inputs, weights, initial state)
CASES = {
    "selective_scan": (lambda x, w, s, r, c: ops.selective_scan(x[0], x[1], w[0], x[2], x[3], w[1], s[0], reset=r, chunk=c),
                       [real(1, B, L, D), positive(2, B, L, D), real(3, B, L, N), real(4, B, L, N)], [-positive(5, D, N), real(6, D)], [real(7, B, D, N)]),
    "wkv": (lambda x, w, s, r, c: _flat(ops.wkv(x[0], x[1], w[0], w[1], tuple(s), reset=r, chunk=c)),
            [real(1, B, L, D), real(2, B, L, D)], [positive(3, D), real(4, D)], [real(5, B, D), positive(6, B, D), real(7, B, D)]),
    "mlstm": (lambda x, w, s, r, c: _flat(ops.mlstm(*x, tuple(s), reset=r, chunk=c)),
              [real(1, B, L, 1, N), real(2, B, L, 1, N), real(3, B, L, 1, D), real(4, B, L, 1), real(5, B, L, 1)], [],
              [real(6, B, 1, N, D + 1), positive(7, B, 1)]),
    "linear_attention": (lambda x, w, s, r, c: ops.linear_attention(*x[:3], -x[3], initial=s[0], reset=r, exclusive=True, chunk=c),
                         [real(1, B, L, 1, N), real(2, B, L, 1, N), real(3, B, L, 1, D), positive(4, B, L, 1, N)], [], [real(5, B, 1, N, D)]),
    "gated_scan, slstm": (lambda x, w, s, r, c: _flat(ops.gated_scan(cells.SLSTM, x[0], w[0], tuple(s), reset=r, chunk=c)),
                          [real(1, B, L, 4 * D)], [real(2, 1, D, 4 * D)], [real(3, B, D), real(4, B, D), positive(5, B, D), real(6, B, D)]),
    "lstm": (lambda x, w, s, r, c: ops.lstm(x[0], *w, *s, reset=r), [real(1, B, L, N)], [real(2, 4 * D, N), real(3, 4 * D, D), real(4, 4 * D)],
             [real(5, B, D), real(6, B, D)]),
    "gru": (lambda x, w, s, r, c: ops.gru(x[0], *w, *s, reset=r), [real(1, B, L, N)],
            [real(2, 3 * D, N), real(3, 3 * D, D), real(4, 3 * D), real(5, D)], [real(6, B, D)]),
    "rnn": (lambda x, w, s, r, c: ops.rnn(x[0], *w, *s, reset=r), [real(1, B, L, N)], [real(2, D, N), real(3, D, D), real(4, D)], [real(5, B, D)]),
    "cfc": (lambda x, w, s, r, c: ops.cfc(x[0], [(w[0], w[1])], (w[2], None), s[0], x[1], reset=r, chunk=c),
            [real(1, B, L, N), positive(2, B, L, 1)], [real(3, 4, N + D), real(4, 4), real(5, 4 * D, 4)], [real(6, B, D)]),
    "ltc": (lambda x, w, s, r, c: ops.ltc(x[0], tuple(w[:4]), tuple(w[4:8]), *w[8:], s[0], unfolds=2, reset=r), [real(1, B, L, N)],
            [*(positive(i, N, D) for i in range(4)), *(positive(i, D, D) for i in range(4, 8)), *(positive(i, D) for i in range(8, 11))], [real(12, B, D)]),
}


def _flat(out):
    return (out[0], *out[1])


def zeros_before(name, state):
    """The state that a piece begins with."""
    return [np.full_like(s, -1e30) if name == "wkv" and i == 2 else np.zeros_like(s) for i, s in enumerate(state)]


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("name", CASES)
def test_pieces_are_those_alone(name, chunk, backend):
    fn, inputs, weights, state = CASES[name]
    dtype, tolerance = ("float32", 2e-5) if backend == "mlx" else ("float64", 1e-10)
    out = real(99, *get(fn(*[[em.tensor(a, dtype=dtype) for a in part] for part in (inputs, weights, state)], None, chunk)[0]).shape)

    def run(inputs, state, reset, out):
        def loss(xs, ws, ss):
            y, *after = fn(xs, ws, ss, reset, chunk)
            return (y * em.tensor(out, dtype=dtype)).sum(), (y, after)
        args = [[em.tensor(a, dtype=dtype) for a in part] for part in (inputs, weights, state)]
        (_, (y, after)), grads = em.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)
        return get(y), [get(a) for a in after], [[get(g) for g in part] for part in grads]

    y, after, (dx, dw, ds) = run(inputs, state, em.tensor(RESET), out)
    total = [np.zeros_like(g) for g in dw]
    for row, pieces in enumerate(PIECES):
        for first, length in pieces:
            at = (slice(row, row + 1), slice(first, first + length))
            own = [s[row:row + 1] for s in (zeros_before(name, state) if RESET[row, first] else state)]
            y_alone, last, (dx_alone, dw_alone, ds_alone) = run([x[at] for x in inputs], own, None, out[at])
            close(y[at], y_alone, tolerance, "y")
            for g, g_alone in zip(dx, dx_alone):
                close(g[at], g_alone, tolerance, "dx")
            total = [t + g for t, g in zip(total, dw_alone)]
            if not RESET[row, first]:
                for g, g_alone in zip(ds, ds_alone):
                    close(g[row:row + 1], g_alone, tolerance, "d initial")
        for a, b in zip(after, last):
            close(a[row:row + 1], b, tolerance, "last state")
    assert all(np.abs(g[1]).max() == 0.0 for g in ds)         # row 1 forgets its initial state at once
    for g, want in zip(dw, total):
        close(g, want, tolerance, "weights")
