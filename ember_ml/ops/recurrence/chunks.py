"""A recurrence over time, chunk by chunk, whose gradient keeps only the states between chunks.

    carry_0 = initial;  (carry_{j+1}, y_j) = fn(carry_j, x_j, weights)   for the chunks x_0, x_1, ... of the inputs

The gradient walks the chunks from the last to the first and runs each one again, so that memory holds the inputs, the outputs,
one state per chunk and the inside of one chunk, whatever the length.

Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, applied along time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from ember_ml.autodiff import tape
from ember_ml.autodiff.gradient import stop_gradient
from ember_ml.errors import ShapeError
from ember_ml.ops.declare import op
from ember_ml.ops.shape import concat, cut, split, squeeze, stack
from ember_ml.tensor import EmberTensor


def after(xs: Sequence[EmberTensor], on: Sequence[EmberTensor]) -> list[EmberTensor]:
    """The same tensors, to be computed with only once `on` are there (see `Runtime.after`)."""
    backend = on[0].backend
    return [EmberTensor(a, backend, x.node)
            for a, x in zip(backend.runtime.after([x.data for x in xs], [x.data for x in on]), xs)]


@lru_cache(maxsize=128)
def fused(walk: Callable, backend, *static) -> Callable:
    """`walk(*static, *tensors) -> list of tensors` as one call that an engine which compiles whole steps compiles: fewer launches.

    Args:
        walk: a pure function of the module's own, not one made anew at each call: what is compiled is kept by it and `static`.
    """
    if backend.runtime.compiles != "step":
        return partial(walk, *static)
    native = backend.runtime.compile(lambda *raw: [y.data for y in walk(*static, *[EmberTensor(a, backend) for a in raw])])

    def run(*tensors):
        if any(t.node is not None for t in tensors):     # the tape must see what is done
            return walk(*static, *tensors)
        return [EmberTensor(y, backend) for y in native(*[t.data for t in tensors])]
    return run


def _pieces(xs, start: int, stop: int):
    length = xs[0].shape[1]
    return list(xs) if (start, stop) == (0, length) else [cut(x, start, stop, axis=1) for x in xs]


class Joined:
    """Pieces of time that come one after the other, in any order, and are one tensor in the end.

    Where the engine computes at once, each is written to its place when it comes: many small arrays that stay between
    large ones that go would leave the heap full of holes.
    """

    def __init__(self, length: int, taped: bool = False):
        self.length, self.taped, self.pieces, self.whole = length, taped, {}, None

    def put(self, start: int, piece: EmberTensor):
        """`piece` (B, steps, ...) holds the steps from `start` on."""
        if piece.shape[1] == self.length:
            self.whole = piece
            return
        if self.whole is None and not self.taped and not self.pieces:
            buffer = piece.backend.runtime.buffer(piece.data, (piece.shape[0], self.length, *piece.shape[2:]))
            self.whole = None if buffer is None else EmberTensor(buffer, piece.backend)
        if self.whole is None:
            self.pieces[start] = piece
        else:
            self.whole.data[:, start:start + piece.shape[1]] = piece.data

    def get(self) -> EmberTensor | None:
        """All steps, once all pieces are there; None if none came."""
        return concat([self.pieces[start] for start in sorted(self.pieces)], axis=1) if self.pieces else self.whole


def _rule(g, out, *tensors, fn, counts, chunk):
    carries, inputs = counts
    carry, xs, weights = tensors[:carries], tensors[carries:carries + inputs], tensors[carries + inputs:]
    length = xs[0].shape[1]
    starts = list(range(0, length, chunk))
    borders = out[len(out) - carries * (len(starts) - 1):] if len(starts) > 1 else ()
    d_carry, d_ys = list(g[:carries]), g[carries:len(out) - len(borders)]
    taped = any(t is not None and t.node is not None for t in (*g, *tensors))
    d_xs, d_weights, done = [Joined(length, taped) for _ in xs], [None] * len(weights), []
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
        for joined, x, d in zip(d_xs, given[carries:], grads[carries:]):
            if x.dtype.is_inexact:
                joined.put(start, x.zeros_like() if d is None else d)
        for i, d in enumerate(grads[carries + inputs:]):
            d_weights[i] = d if d_weights[i] is None else d_weights[i] if d is None else d_weights[i] + d
    return [*d_carry, *(joined.get() for joined in d_xs), *d_weights]


@op(vjp=_rule, owns_gradient=True)
def chunked_scan(*tensors, fn, counts, chunk):
    """Native form of `over_chunks`: the tensors of carry, inputs and weights in a row, `counts` of the first two.

    Returns the last carry, the outputs, and the carries between chunks, which are there for the gradient only.
    """
    carries, inputs = counts
    carry, xs, weights = tensors[:carries], tensors[carries:carries + inputs], tensors[carries + inputs:]
    length, found, borders = xs[0].shape[1], None, []
    for start in range(0, length, chunk):
        pieces = _pieces(xs, start, min(start + chunk, length))
        if start:
            borders.extend(carry)
            pieces = after(pieces, [*carry, *ys])
        carry, ys = fn(tuple(carry), tuple(pieces), tuple(weights))
        found = [Joined(length) for _ in ys] if found is None else found
        for joined, y in zip(found, ys):
            joined.put(start, y)
    return (*carry, *(joined.get() for joined in found), *borders)


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

    Raises ShapeError for inputs of different lengths, of no steps, or chunks of none.
    """
    lengths = {x.shape[1] for x in xs}
    if len(lengths) != 1 or 0 in lengths or chunk < 1:
        raise ShapeError(f"over_chunks: expected inputs of one length of at least 1, and a chunk of at least 1 step; got inputs of shapes "
                         f"{[x.shape for x in xs]} and chunk {chunk}")
    if max(lengths) <= chunk:                            # no more is kept than the inside of one chunk
        return fn(tuple(carry), tuple(xs), tuple(weights))
    out = chunked_scan(*carry, *xs, *weights, fn=fn, counts=(len(carry), len(xs)), chunk=chunk)
    borders = len(carry) * (-(-xs[0].shape[1] // chunk) - 1)
    return out[:len(carry)], out[len(carry):len(out) - borders]


def over_steps(step: Callable, resets: bool = False) -> Callable:
    """A function for `over_chunks` that walks a chunk step by step.

    Args:
        step: `step(state, xs, weights) -> (state, y)`, xs with one position each, (B, ...); y one tensor (B, ...).
        resets: the last of xs is what the state is multiplied with before each step, (B, L, 1), a constant to the gradient.
    """
    if resets:
        def kept(state, xs, weights, step=step):
            return step(tuple(s * stop_gradient(xs[-1]) for s in state), xs[:-1], weights)
        step = kept

    def fn(state, xs, weights):
        steps = xs[0].shape[1]
        rows = [[squeeze(part, 1) for part in split(x, steps, axis=1)] for x in xs]
        found = []
        for now in zip(*rows):
            state, y = step(state, now, weights)
            found.append(y)
        return tuple(state), (stack(found, axis=1),)
    return fn
