"""Sums of products over named axes."""

from __future__ import annotations

import string
from math import prod

from ember_ml.errors import ShapeError
from ember_ml.ops.linear import matmul
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import broadcast_to, permute_dims, reshape
from ember_ml.tensor import EmberTensor


def einsum(equation: str, *xs: EmberTensor) -> EmberTensor:
    """The sum of products that an equation in Einstein's notation names: einsum("bik,bkj->bij", x, y) is a product of matrices.

    Args:
        equation: a letter an axis, the tensors parted by commas. After "->" the axes of the result; all others are summed. Without
            "->": the letters that come once, in alphabetical order. "..." stands for leading axes, which broadcast.
        xs: the tensors, multiplied from left to right.

    Raises:
        ShapeError: axes or lengths that do not fit the equation; a letter twice in one tensor (take its diagonal first).
    """
    inputs, output, size = _read(equation, xs)
    names, x = inputs[0], xs[0]
    for i, y in enumerate(xs[1:], 1):
        kept = set(output).union(*inputs[i + 1:])
        names, x = _pair(names, x, inputs[i], y, kept, size)
    names, x = _sum(names, x, set(output))
    return permute_dims(x, tuple(names.index(n) for n in output)) if names != output else x


def _read(equation: str, xs) -> tuple[list[list], list, dict]:
    """(names of the axes of each tensor, of the result, length by name); an axis under "..." is named by its place from the right."""
    def fail(why):
        raise ShapeError(f"einsum: {why}; got {equation!r} for shapes {', '.join(str(x.shape) for x in xs)}")

    left, arrow, right = equation.replace(" ", "").partition("->")
    parts, size, inputs = left.split(","), {}, []
    if not xs or len(parts) != len(xs):
        fail(f"expected {len(parts)} tensors")

    def names_of(part, spread):
        before, dots, after = part.partition("...")
        if not all(c in string.ascii_letters for c in before + after):
            fail("expected letters, commas, '...' and '->'")
        names = [*before, *(range(-spread, 0) if dots else ()), *after]
        if len(set(names)) != len(names):
            fail("expected each letter once in a tensor; take its diagonal with ops.linalg.diagonal first")
        return names

    widest = 0
    for part, x in zip(parts, xs):
        spread = x.ndim - len(part.replace("...", ""))
        if spread < 0 or spread and "..." not in part:
            fail(f"expected {len(part.replace('...', ''))} axes for {part!r}")
        names, widest = names_of(part, spread), max(widest, spread if "..." in part else 0)
        inputs.append(names)
        for name, n in zip(names, x.shape):
            if size.setdefault(name, n) != n:
                if not isinstance(name, int) or 1 not in (size[name], n):
                    fail(f"expected one length for axis {name!r}")
                size[name] = max(size[name], n) if n else 0
    every = [n for names in inputs for n in names]
    if arrow:
        output = names_of(right, widest if "..." in right else 0)
        if not set(output) <= set(every):
            fail("expected axes of the result among those of the tensors")
    else:
        output = [*range(-widest, 0), *sorted(n for n in set(every) if isinstance(n, str) and every.count(n) == 1)]
    return inputs, output, size


def _sum(names, x, kept):
    """x without the axes that nobody asks for any more."""
    gone = tuple(i for i, n in enumerate(names) if n not in kept)
    return ([n for n in names if n in kept], total(x, axis=gone)) if gone else (names, x)


def _pair(a_names, a, b_names, b, kept, size):
    """Two tensors as one product of matrices: axes of both that stay lead, axes of both that go are summed over."""
    a_names, a = _sum(a_names, a, kept | set(b_names))
    b_names, b = _sum(b_names, b, kept | set(a_names))
    batch = [n for n in a_names if n in b_names and n in kept]
    over = [n for n in a_names if n in b_names and n not in kept]
    rows, columns = [n for n in a_names if n not in b_names], [n for n in b_names if n not in a_names]

    def arranged(names, x, first, second):
        """(lengths of the leading axes, which broadcast in the product; one axis for `first`, one for `second`)"""
        full = tuple(m if n in batch else size[n] for n, m in zip(names, x.shape))
        x = permute_dims(x if full == x.shape else broadcast_to(x, full), tuple(names.index(n) for n in (*batch, *first, *second)))
        return reshape(x, (*x.shape[:len(batch)], prod(size[n] for n in first), prod(size[n] for n in second)))

    y = matmul(arranged(a_names, a, rows, over), arranged(b_names, b, over, columns))
    names = [*batch, *rows, *columns]
    return names, reshape(y, tuple(size[n] for n in names))
