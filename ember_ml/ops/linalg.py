"""Linear algebra: products, norms, ranks, and the factorizations of `factorize`, as the array API's extension `linalg` names them."""

from __future__ import annotations

import math

from ember_ml.errors import ShapeError
from ember_ml.ops import elementwise as ew
from ember_ml.ops import reduce
from ember_ml.ops.creation import arange, eye
from ember_ml.ops.data_type import finfo
from ember_ml.ops.declare import op
from ember_ml.ops.factorize import (
    H, cholesky, det, eig, eigh, eigvals, eigvalsh, inv, qr, slogdet, solve, square_matrix, svd, svd_parts, svdvals,
)
from ember_ml.ops.index import take_axis
from ember_ml.ops.linear import matmul, outer
from ember_ml.ops.rearrange import broadcast_arrays, matrix_transpose
from ember_ml.ops.shape import checked_axes, expand_dims, permute_dims, reshape, stack
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common.dtypes import accumulator


def vecdot(x: EmberTensor, y: EmberTensor, axis: int = -1) -> EmberTensor:
    """sum conj(x) y along `axis`, counted from the end of both; the other axes broadcast."""
    if axis >= 0 or axis < -min(x.ndim, y.ndim) or x.shape[axis] != y.shape[axis]:
        raise ShapeError(f"vecdot: expected a negative axis of one length, got axis {axis} of shapes {x.shape} and {y.shape}")
    product = (ew.conj(x) if x.dtype.kind == "complex" else x) * y
    return reduce.sum(product, axis=axis, dtype=product.dtype)


def tensordot(x: EmberTensor, y: EmberTensor, axes=2) -> EmberTensor:
    """Products summed over pairs of axes: the last `axes` of x with the first of y, or over (axes of x, axes of y)."""
    if isinstance(axes, int):
        axes = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    of_x, of_y = (checked_axes(a, t.ndim, "tensordot") for a, t in zip(axes, (x, y)))
    if [x.shape[i] for i in of_x] != [y.shape[i] for i in of_y]:
        raise ShapeError(f"tensordot: expected equal lengths over axes {axes}, got shapes {x.shape} and {y.shape}")
    rows, columns = ([i for i in range(t.ndim) if i not in a] for t, a in ((x, of_x), (y, of_y)))
    inner = math.prod(x.shape[i] for i in of_x)
    left = reshape(permute_dims(x, (*rows, *of_x)), (math.prod(x.shape[i] for i in rows), inner))
    right = reshape(permute_dims(y, (*of_y, *columns)), (inner, math.prod(y.shape[i] for i in columns)))
    return reshape(matmul(left, right), (*(x.shape[i] for i in rows), *(y.shape[i] for i in columns)))


def cross(x: EmberTensor, y: EmberTensor, axis: int = -1) -> EmberTensor:
    """Vector product of vectors of length 3 along `axis`; the other axes broadcast."""
    if x.shape[axis] != 3 or y.shape[axis] != 3:
        raise ShapeError(f"cross: expected axes of length 3, got axis {axis} of shapes {x.shape} and {y.shape}")
    x, y = broadcast_arrays(x, y)
    axis = axis % x.ndim
    a, b = ([t[(slice(None),) * axis + (i,)] for i in range(3)] for t in (x, y))
    return stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]], axis)


def diagonal(x: EmberTensor, offset: int = 0) -> EmberTensor:
    """x[..., i, i + offset] over the last two axes: (..., n)."""
    if x.ndim < 2:
        raise ShapeError(f"diagonal: expected at least two axes, got shape {x.shape}")
    rows, columns = x.shape[-2:]
    row, column = max(-offset, 0), max(offset, 0)
    n = max(min(rows - row, columns - column), 0)
    flat = reshape(x, (*x.shape[:-2], rows * columns))
    return take_axis(flat, arange(n, like=x) * (columns + 1) + (row * columns + column), axis=flat.ndim - 1)


def trace(x: EmberTensor, offset: int = 0, dtype=None) -> EmberTensor:
    """Sum of `diagonal`, in `dtype` (None: as `sum`)."""
    return reduce.sum(diagonal(x, offset).astype(dtype or accumulator(x.dtype)), axis=-1)


def vector_norm(x: EmberTensor, axis=None, keepdims: bool = False, ord: float = 2) -> EmberTensor:  # noqa: A002 - the standard's
    """(sum |x|^ord)^(1/ord) over `axis` (None: all); the largest, the smallest |x| for inf, -inf; how many are not zero for 0."""
    size = ew.abs(x)
    if math.isinf(ord):
        return (reduce.max if ord > 0 else reduce.min)(size, axis=axis, keepdims=keepdims)
    if ord == 0:
        return reduce.sum(ew.not_equal(size, 0).astype(size.dtype), axis=axis, keepdims=keepdims)
    if ord == 1:
        return reduce.sum(size, axis=axis, keepdims=keepdims)
    if ord == 2:
        return ew.sqrt(reduce.sum(ew.square(size), axis=axis, keepdims=keepdims))
    return reduce.sum(size ** ord, axis=axis, keepdims=keepdims) ** (1.0 / ord)


def matrix_norm(x: EmberTensor, keepdims: bool = False, ord="fro") -> EmberTensor:  # noqa: A002 - the standard's
    """Norm over the last two axes: "fro", the root of all squares; "nuc", 2, -2, the sum, the largest, the smallest singular value; 1, -1
    and inf, -inf, the largest and smallest sum of |x| over columns and over rows."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_norm: expected matrices (..., m, n), got shape {x.shape}")
    if ord == "fro":
        return vector_norm(x, axis=(-2, -1), keepdims=keepdims)
    if ord in ("nuc", 2, -2):
        pick = {"nuc": reduce.sum, 2: reduce.max, -2: reduce.min}[ord]
        y = pick(svdvals(x), axis=-1)
    elif ord in (1, -1, math.inf, -math.inf):
        sums = reduce.sum(ew.abs(x), axis=-2 if abs(ord) == 1 else -1)
        y = (reduce.max if ord > 0 else reduce.min)(sums, axis=-1)
    else:
        raise ValueError(f"matrix_norm: expected ord 'fro', 'nuc', 1, -1, 2, -2, inf or -inf; got {ord!r}")
    return expand_dims(y, (-2, -1)) if keepdims else y


def matrix_power(x: EmberTensor, n: int) -> EmberTensor:
    """Product of n factors x (..., m, m), by squaring; of the inverse for n < 0, the identity for 0."""
    square_matrix("matrix_power", x)
    if n < 0:
        x, n = inv(x), -n
    out = None
    while n:
        if n & 1:
            out = x if out is None else matmul(out, x)
        x, n = matmul(x, x) if n > 1 else x, n >> 1
    return x * 0 + eye(x.shape[-1], dtype=x.dtype, like=x) if out is None else out


def _cutoff(s, rtol, shape, dtype):
    """The size below which singular values s count as zero, with a last axis of length one."""
    if rtol is None:
        rtol = max(shape[-2:]) * finfo(dtype).eps
    elif isinstance(rtol, EmberTensor):
        rtol = expand_dims(rtol, -1)
    return reduce.max(s, axis=-1, keepdims=True) * rtol


def matrix_rank(x: EmberTensor, rtol=None) -> EmberTensor:
    """int32 number of singular values above rtol times the largest: (...). rtol None: max(m, n) eps."""
    if 0 in x.shape[-2:]:
        return reduce.sum(ew.not_equal(x, 0), axis=(-2, -1))
    s = svdvals(x)
    return reduce.count_nonzero(s > _cutoff(s, rtol, x.shape, x.dtype), axis=-1)


def _pinv_grad(g, y, x, _rtol=None):
    p = eye(x.shape[-2], dtype=x.dtype, like=x) - matmul(x, y)
    q = eye(x.shape[-1], dtype=x.dtype, like=x) - matmul(y, x)
    return (matmul(matmul(p, H(g)), matmul(y, H(y))) + matmul(matmul(H(y), y), matmul(H(g), q)) - matmul(H(y), matmul(g, H(y))),)


@op(vjp=_pinv_grad, owns_gradient=True)
def pinv(x, rtol=None):
    """Pseudo-inverse of (..., m, n): (..., n, m). Singular values up to rtol (None: max(m, n) eps) times the largest count as zero.

    The gradient holds where the rank does not change. Source: Golub and Pereyra 1973.
    """
    if 0 in x.shape[-2:]:
        return matrix_transpose(x)
    u, s, vh = svd_parts(x, full=False)
    large = s > _cutoff(s, rtol, x.shape, x.dtype)
    inverse = ew.where(large, ew.reciprocal(ew.where(large, s, 1.0)), 0.0)
    return matmul(H(vh), expand_dims(inverse, -1).astype(u.dtype) * H(u))


__all__ = [
    "cholesky", "cross", "det", "diagonal", "eig", "eigh", "eigvals", "eigvalsh", "inv", "matmul", "matrix_norm", "matrix_power",
    "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve", "svd", "svdvals", "tensordot", "trace", "vecdot",
    "vector_norm",
]
