"""A recurrence over time, chunk by chunk, whose gradient keeps only the states between chunks.

    carry_0 = initial;  (carry_{j+1}, y_j) = fn(carry_j, x_j, weights)   for the chunks x_0, x_1, ... of the inputs

The gradient walks the chunks from the last to the first and runs each one again, so that memory holds the inputs, the outputs,
one state per chunk and the inside of one chunk, whatever the length.

Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, applied along time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ember_ml.autodiff import tape
from ember_ml.ops.declare import op
from ember_ml.ops.shape import concat, cut, split, squeeze, stack
from ember_ml.tensor import EmberTensor


def after(xs: Sequence[EmberTensor], on: Sequence[EmberTensor]) -> list[EmberTensor]:
    """The same tensors, to be computed with only once `on` are there (see `Runtime.after`)."""
    backend = on[0].backend
    return [EmberTensor(a, backend, x.node)
            for a, x in zip(backend.runtime.after([x.data for x in xs], [x.data for x in on]), xs)]


def _pieces(xs, start: int, stop: int):
    length = xs[0].shape[1]
    return list(xs) if (start, stop) == (0, length) else [cut(x, start, stop, axis=1) for x in xs]


def _rule(g, out, *tensors, fn, counts, chunk):
    carries, inputs = counts
    carry, xs, weights = tensors[:carries], tensors[carries:carries + inputs], tensors[carries + inputs:]
    length = xs[0].shape[1]
    starts = list(range(0, length, chunk))
    borders = out[len(out) - carries * (len(starts) - 1):] if len(starts) > 1 else ()
    d_carry, d_ys = list(g[:carries]), g[carries:len(out) - len(borders)]
    d_xs, d_weights, done = [[] for _ in xs], [None] * len(weights), []
    for j in reversed(range(len(starts))):
        start, stop = starts[j], min(starts[j] + chunk, length)
        begin = carry if j == 0 else borders[carries * (j - 1):carries * j]
        given = after([*begin, *_pieces(xs, start, stop)], done) if done else [*begin, *_pieces(xs, start, stop)]

        def again(flat):
            new, ys = fn(tuple(flat[:carries]), tuple(flat[carries:carries + inputs]), tuple(flat[carries + inputs:]))
            return [*new, *ys]

        grads = tape.pull(again, [*given, *weights], [*d_carry, *_pieces(d_ys, start, stop)])
        done = [d for d in grads if d is not None]
        d_carry = [b.zeros_like() if d is None else d for b, d in zip(begin, grads)]
        for pieces, x, d in zip(d_xs, given[carries:], grads[carries:]):
            pieces.append(d if d is not None or not x.dtype.is_inexact else x.zeros_like())
        for i, d in enumerate(grads[carries + inputs:]):
            d_weights[i] = d if d_weights[i] is None else d_weights[i] if d is None else d_weights[i] + d
    joined = [None if pieces[0] is None else pieces[0] if len(pieces) == 1 else concat(pieces[::-1], axis=1)
              for pieces in d_xs]
    return [*d_carry, *joined, *d_weights]


@op(vjp=_rule, owns_gradient=True)
def chunked_scan(*tensors, fn, counts, chunk):
    """Native form of `over_chunks`: the tensors of carry, inputs and weights in a row, `counts` of the first two.

    Returns the last carry, the outputs, and the carries between chunks, which are there for the gradient only.
    """
    carries, inputs = counts
    carry, xs, weights = tensors[:carries], tensors[carries:carries + inputs], tensors[carries + inputs:]
    length, found, borders = xs[0].shape[1], [], []
    for start in range(0, length, chunk):
        pieces = _pieces(xs, start, min(start + chunk, length))
        if start:
            borders.extend(carry)
            pieces = after(pieces, [*carry, *ys])
        carry, ys = fn(tuple(carry), tuple(pieces), tuple(weights))
        found.append(ys)
    ys = found[0] if len(found) == 1 else [concat(parts, axis=1) for parts in zip(*found)]
    return (*carry, *ys, *borders)


def over_chunks(fn: Callable, carry: Sequence[EmberTensor], xs: Sequence[EmberTensor],
                weights: Sequence[EmberTensor] = (), chunk: int = 64) -> tuple[tuple, tuple]:
    """The last carry and the outputs over all of time.

    Args:
        fn: `fn(carry, xs, weights) -> (carry, ys)`, tuples of tensors; pure, and for any number of steps. Tensors that it
            reads from outside its arguments are constants to the gradient.
        carry: the state before the first step.
        xs: inputs with time on axis 1, all of one length, at least 1.
        weights: tensors that every chunk reads whole.
        chunk: steps of a chunk; the last one may be shorter.

    Returns: (carry, ys), ys with time on axis 1.
    """
    out = chunked_scan(*carry, *xs, *weights, fn=fn, counts=(len(carry), len(xs)), chunk=chunk)
    borders = len(carry) * (-(-xs[0].shape[1] // chunk) - 1)
    return out[:len(carry)], out[len(carry):len(out) - borders]


def over_steps(step: Callable) -> Callable:
    """A function for `over_chunks` that walks a chunk step by step.

    Args:
        step: `step(state, xs, weights) -> (state, y)`, xs with one position each, (B, ...); y one tensor (B, ...).
    """
    def fn(state, xs, weights):
        steps = xs[0].shape[1]
        rows = [[squeeze(part, 1) for part in split(x, steps, axis=1)] for x in xs]
        found = []
        for now in zip(*rows):
            state, y = step(state, now, weights)
            found.append(y)
        return tuple(state), (stack(found, axis=1),)
    return fn
