"""The ops that the array API brought in: functions of numbers and bits, reductions, search and sets, factorizations."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.ops import index, rearrange
from ember_ml.parity.cases.case import draws, row

real, _ints = draws(12)
X, Y, P = real(3, 4), real(3, 4) + 0.013, real(3, 4, low=0.3, high=2.5)
STRIDED = real(4, 3, low=-0.9, high=0.8).T
I8 = np.array([[-7, 3, 100], [0, -128, 127]], np.int8)
U8 = np.array([[7, 3, 200], [0, 255, 1]], np.uint8)

for _name, _x, _expect, _also in [
        ("tan", STRIDED, np.tan, "c"), ("asin", STRIDED, np.arcsin, "c"), ("acos", STRIDED, np.arccos, "c"), ("atan", STRIDED, np.arctan, "c"),
        ("sinh", X, np.sinh, "c"), ("cosh", X, np.cosh, "c"), ("asinh", STRIDED, np.arcsinh, "c"), ("acosh", P + 0.9, np.arccosh, "c"),
        ("atanh", STRIDED, np.arctanh, "c"), ("log2", P, np.log2, "c"), ("log10", P, np.log10, "c"), ("reciprocal", P, lambda x: 1 / x, "c"),
        ("positive", X, np.positive, "ic")]:
    row(_name, getattr(ops, _name), [_x], _expect, also=_also, empty=(0,), scalar=True)
row("expm1", ops.expm1, [np.array([1e-4, -0.3, 1.2]) * (1 + 0.5j)], np.expm1, label="complex")
row("log1p", ops.log1p, [np.array([1e-4, -0.3, 1.2]) * (1 + 0.5j)], np.log1p, label="complex")
for _name, _expect in {"ceil": np.ceil, "trunc": np.trunc}.items():
    row(_name, getattr(ops, _name), [X], _expect, (), empty=(0,), scalar=True)
    row(_name, getattr(ops, _name), [I8], lambda x: x, (), "integers stay")
_ODD = np.array([0.5, np.inf, -np.inf, np.nan, -0.0, 0.0])
for _name, _expect in {"isinf": np.isinf, "isnan": np.isnan}.items():
    row(_name, getattr(ops, _name), [_ODD], _expect, (), empty=(0,), scalar=True)
row("signbit", ops.signbit, [np.array([0.5, np.inf, -np.inf, -0.0, 0.0])], np.signbit, (), empty=(0,), scalar=True)
for _name, _expect in {"hypot": np.hypot, "logaddexp": np.logaddexp, "copysign": np.copysign}.items():
    _grads = (0,) if _name == "copysign" else None
    row(_name, getattr(ops, _name), [X, real(4, low=-1.7, high=1.9)], _expect, _grads, "broadcast", empty=(0,))
    row(_name, lambda x, f=getattr(ops, _name): f(x, -1.5), [X], lambda x, f=_expect: f(x, -1.5), label="number second", scalar=True)
row("hypot", ops.hypot, [np.array([3e30, 0.0]), np.array([4e30, 0.0])], np.hypot, (), "no overflow, no 0 / 0", single="it holds no 3e30")
row("nextafter", lambda x, y: ops.nextafter(x, y) > x, [X, Y], lambda x, y: y > x, (), "upwards", empty=(0, 1), scalar=True,
    single="NumPy has none for bfloat16")
row("nextafter", lambda x, y: (ops.nextafter(x, y) - x) != 0, [X, Y], lambda x, y: x != y, (), "elsewhere", single="NumPy has none for bfloat16")
for _name, _op in {"bitwise_and": lambda x, y: x & y, "bitwise_or": lambda x, y: x | y, "bitwise_xor": lambda x, y: x ^ y}.items():
    row(_name, _op, [I8, I8[::-1]], _op, (), empty=(0, 1), scalar=True)
    row(_name, lambda x, f=_op: f(x, 5), [I8], lambda x, f=_op: f(x, np.int8(5)), (), "number second")
    row(_name, lambda x, f=_op: f(5, x), [I8], lambda x, f=_op: f(np.int8(5), x), (), "number first")
    row(_name, _op, [I8 > 0, I8[::-1] > 0], _op, (), "bools")
row("bitwise_invert", lambda x: ~x, [I8], np.invert, (), empty=(0,), scalar=True)
row("bitwise_invert", lambda x: ~x, [I8 > 0], np.invert, (), "bools")
row("bitwise_left_shift", lambda x, y: x << y, [U8, np.array([1, 7, 0], np.uint8)], np.left_shift, (), empty=(0,))
row("bitwise_right_shift", lambda x, y: x >> y, [I8, np.array([1, 7, 0], np.int8)], np.right_shift, (), empty=(0,))
row("bitwise_right_shift", lambda x: x >> 3, [I8], lambda x: x >> 3, (), "number second")
row("bitwise_left_shift", lambda x: 3 << x, [np.array([0, 1, 4], np.int8)], lambda x: np.int8(3) << x, (), "number first")
row("bitwise_left_shift", lambda x, y: x << y, [U8, np.array([8, 9, 200], np.uint8)], lambda x, y: x * 0, (), "all bits out")
row("bitwise_right_shift", lambda x, y: x >> y, [I8, np.array([8, 9, 100], np.int8)], lambda x, y: np.where(x < 0, -1, 0).astype(np.int8), (),
    "all bits out")
row("logical_xor", ops.logical_xor, [I8 > 0, I8[::-1] > 0], np.logical_xor, (), empty=(0, 1), scalar=True)
row("clip", lambda x, low: ops.clip(x, low, 1.1), [X, real(4, low=-1.7, high=0.4)], lambda x, low: np.clip(x, low, 1.1), label="tensor below")
row("clip", lambda x, high: ops.clip(x, max=high), [X, real(4, low=-1.7, high=0.4)], lambda x, high: np.minimum(x, high), label="tensor above")

for _label, _kw in {"all": {}, "last": {"axis": -1}, "kept": {"axis": (0, 1), "keepdims": True}}.items():
    row("prod", lambda x, kw=_kw: ops.prod(x, **kw), [STRIDED], lambda x, kw=_kw: np.prod(x, **kw), label=_label, slack=4.0)
    row("std", lambda x, kw=_kw: ops.std(x, correction=1, **kw), [STRIDED], lambda x, kw=_kw: np.std(x, ddof=1, **kw), label=_label, slack=2.0,
        empty=(0,) if _label == "last" else None)
row("prod", lambda x: ops.prod(x, axis=0), [np.array([[0.0, 2.0], [3.0, 0.0], [0.0, -1.5]])], lambda x: np.prod(x, 0), label="zeros")
row("prod", ops.prod, [I8[:, :2]], lambda x: np.prod(x, dtype=np.int32), (), "small integers")
row("prod", lambda x: ops.prod(x, axis=1), [np.zeros((2, 0))], lambda x: np.ones(2), (), "nothing")
row("argmin", lambda x: ops.argmin(x, axis=1), [X], lambda x: np.argmin(x, 1), (), empty=(0,))
row("argmin", lambda x: ops.argmin(x, keepdims=True), [X], lambda x: np.argmin(x, keepdims=True), (), "of all, kept")
row("sum", lambda x: ops.sum(x, axis=1, dtype="int8"), [I8], lambda x: np.sum(x, 1, dtype=np.int8), (), "in int8, which wraps around")
row("cumprod", lambda x: ops.cumprod(x, axis=1), [STRIDED], lambda x: np.cumprod(x, 1), empty=(0,), also="c", slack=4.0)
row("cumprod", lambda x: ops.cumprod(x), [np.array([1.5, 0.0, 2.0, 0.0, 3.0])], np.cumprod, label="zeros")
row("flip", lambda x: ops.flip(x), [X], lambda x: x[::-1, ::-1], label="all axes")

_MASKED = real(3, 4)
row("nonzero_places", lambda x: ops.stack(ops.nonzero(x)), [np.array([[0, 2, 0], [1, 0, 3]], np.int32)],
    lambda x: np.stack(np.nonzero(x)).astype(np.int32), ())
row("nonzero_places", lambda x: ops.nonzero(x)[0], [np.zeros((0, 3))], lambda x: np.zeros(0, np.int32), (), "nothing")
row("get_at", lambda x: x[x > 0.1], [_MASKED], lambda x: x[x > 0.1], label="mask")
row("get_at", lambda x: x[..., x[0] > 0.1], [_MASKED], lambda x: x[..., x[0] > 0.1], label="mask of one axis")
row("add_at", lambda x, v: index.add_at(x, v, x[:, 0] > 0.1, index=(index.Slot(0),)) if x.backend.masks else
    index.add_at(x, v, *index.nonzero(x[:, 0] > 0.1), index=(index.Slot(0),)), [_MASKED, real(4)],
    lambda x, v: x + np.where(x[:, :1] > 0.1, v, 0.0), label="mask")
_SET = np.array([[3, 1, 3], [2, 1, 3]], np.int32)
row("unique_parts", lambda x: ops.unique_all(x).values, [_SET], lambda x: np.array([1, 2, 3], np.int32), (), "values")
row("unique_parts", lambda x: ops.unique_all(x).indices, [_SET], lambda x: np.array([1, 3, 0], np.int32), (), "first places")
row("unique_parts", lambda x: ops.unique_all(x).inverse_indices, [_SET], lambda x: np.array([[2, 0, 2], [1, 0, 2]], np.int32), (), "inverse")
row("unique_parts", lambda x: ops.unique_all(x).counts, [_SET], lambda x: np.array([2, 1, 3], np.int32), (), "counts")
row("unique_parts", lambda x: ops.unique_values(x), [np.zeros(0, np.int32)], lambda x: x, (), "nothing")
for _side in ("left", "right"):
    row("searchsorted_rows", lambda x, v, side=_side: ops.searchsorted(x, v, side=side),
        [np.array([1.0, 2.0, 2.0, 5.0]), np.array([[2.0, 0.0], [6.0, 3.0]])],
        lambda x, v, side=_side: np.searchsorted(x, v, side=side).astype(np.int32), (), _side, empty=(1,))

for _norm in ("ortho", "forward"):
    row("rfft", lambda x, k=_norm: ops.rfft(x, norm=k), [real(2, 6)], lambda x, k=_norm: np.fft.rfft(x, norm=k), label=_norm, single="NumPy and torch transform single and double precision")
    row("irfft", lambda x, k=_norm: ops.irfft(x, norm=k), [real(2, 5) + 1j * real(2, 5)], lambda x, k=_norm: np.fft.irfft(x, norm=k), label=_norm)
    row("fft", lambda x, k=_norm: ops.fft(x, norm=k), [real(2, 5) + 1j * real(2, 5)], lambda x, k=_norm: np.fft.fft(x, norm=k), label=_norm)
    row("ifft", lambda x, k=_norm: ops.ifft(x, norm=k), [real(2, 5) + 1j * real(2, 5)], lambda x, k=_norm: np.fft.ifft(x, norm=k), label=_norm)


def _positive(x):
    return x @ H(x) + 2.0 * np.eye(x.shape[-1])


def _definite(x):
    """A symmetric positive definite matrix made of x, so that every direction of x is one that the op allows."""
    return ops.matmul(x, rearrange.matrix_transpose(ops.conj(x))) + 2.0 * ops.eye(x.shape[-1], dtype=x.dtype, like=x)


def H(x):  # noqa: N802 - the field's sign for it
    return np.conj(np.swapaxes(x, -1, -2))


_SQUARE = real(2, 3, 3, low=-1.0, high=1.2)
_MATRIX = {"single": "factorizations know single and double precision", "slack": 8.0}
for _name, _call, _expect, _rest in [
        ("cholesky_lower", ops.cholesky, np.linalg.cholesky, {"also": "c", "empty": (0,)}),
        ("cholesky_lower", lambda x: ops.cholesky(x, upper=True), lambda x: H(np.linalg.cholesky(x)), {"label": "upper"}),
        ("inv", ops.inv, np.linalg.inv, {"also": "c", "empty": (0,)}), ("det", ops.det, np.linalg.det, {"also": "c", "empty": (0,)}),
        ("slogdet_parts", lambda x: ops.slogdet(x).logabsdet, lambda x: np.linalg.slogdet(x)[1], {"empty": (0,)}),
        ("eigh_parts", ops.eigvalsh, np.linalg.eigvalsh, {"also": "c", "empty": (0,)}),
        ("eigh_parts", lambda x: ops.abs(ops.eigh(x).eigenvectors), lambda x: np.abs(np.linalg.eigh(x)[1]), {"label": "vectors", "also": "c"})]:
    row(_name, lambda x, f=_call: f(_definite(x)), [_SQUARE], lambda x, f=_expect: f(_positive(x)), **{**_MATRIX, **_rest})
row("solve_rows", lambda x, b: ops.solve(_definite(x), b), [_SQUARE, real(3, 2)], lambda x, b: np.linalg.solve(_positive(x), b), also="c",
    empty=(0,), **_MATRIX)
row("solve_rows", lambda x, b: ops.solve(_definite(x), b), [_SQUARE[0], real(3)], lambda x, b: np.linalg.solve(_positive(x), b), label="vector",
    **_MATRIX)
row("slogdet_parts", lambda x: ops.slogdet(x).sign, [np.array([[1.0, 2.0], [3.0, 1.0]])], lambda x: np.linalg.slogdet(x)[0], (), "sign", **_MATRIX)
row("slogdet_parts", lambda x: ops.slogdet(x).sign, [np.array([[1.0, 2.0j], [3.0, 1.0]])], lambda x: np.linalg.slogdet(x)[0], (), "complex sign")
row("eig_parts", lambda x: ops.sort(ops.real(ops.eigvals(x))), [np.array([[1.0, 2.0], [0.5, 1.5]])],
    lambda x: np.sort(np.linalg.eigvals(x).real), (), "values", **_MATRIX)
row("eig_parts", lambda x: ops.sort(ops.imag(ops.eigvals(x)), axis=-1), [np.array([[[0.0, 1.0], [-2.0, 0.0]]])],
    lambda x: np.sort(np.linalg.eigvals(x).imag, axis=-1), (), "complex values", empty=(0,), **_MATRIX)
_TALL = real(2, 4, 3)
row("qr_parts", lambda x: ops.abs(ops.qr(x).R), [_TALL], lambda x: np.abs(np.linalg.qr(x)[1]), label="R", also="c", empty=(0,), **_MATRIX)
row("qr_parts", lambda x: ops.abs(ops.qr(x).Q), [_TALL], lambda x: np.abs(np.linalg.qr(x)[0]), label="Q", also="c", **_MATRIX)
row("qr_parts", lambda x: ops.abs(ops.qr(x, mode="complete").R), [_TALL], lambda x: np.abs(np.linalg.qr(x, mode="complete")[1]), (), "complete",
    **_MATRIX)


def _rebuilt(x, full):
    u, s, vh = ops.svd(x, full_matrices=full)
    k = s.shape[-1]
    return ops.matmul(u[..., :k] * ops.expand_dims(s, -2), vh[..., :k, :])


row("svd_parts", lambda x: _rebuilt(x, False), [_TALL], lambda x: x, (), "reduced", empty=(0,), also="c", **_MATRIX)
row("svd_parts", lambda x: _rebuilt(x, True), [_TALL[0].T], lambda x: x, (), "full", **_MATRIX)
row("svdvals", ops.svdvals, [_TALL], lambda x: np.linalg.svd(x, compute_uv=False), empty=(0,), **_MATRIX)
row("pinv", ops.pinv, [_TALL], np.linalg.pinv, also="c", empty=(0,), **_MATRIX)
row("pinv", ops.pinv, [_TALL[0].T], np.linalg.pinv, label="wide", **_MATRIX)
