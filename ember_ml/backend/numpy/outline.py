"""An engine that knows shapes and dtypes and no values: what a model would hold and compute, without the memory for it.

Arrays of any size are one number with strides of 0. Elementwise functions and matrix products give such arrays again; the others
run as they are, on inputs that must stay below a limit. It counts the floating-point operations that go by.
"""

from __future__ import annotations

import math

import numpy as np

from ember_ml.backend.numpy import ArrayModuleBackend, NumpyRuntime
from ember_ml.errors import ShapeError

#: natives that work element by element, so that arrays of one number give an array of one number
ELEMENTWISE = frozenset(
    "abs acos acosh add asin asinh astype atan atan2 atanh bitwise_and bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift "
    "bitwise_xor ceil complex conj copysign cos cosh divide equal erf erfinv exp exp2 expm1 floor floor_divide greater greater_equal hypot "
    "imag isfinite isinf isnan less less_equal log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum minimum "
    "multiply negative nextafter not_equal pow real remainder round sign signbit sin sinh sqrt subtract tan tanh trunc where".split())
#: ... that move values and compute nothing
MOVES = frozenset(
    "argsort broadcast_to concat_all cut flip fold gather_along get_at pad permute_dims reshape set_at take_axis put_add_along_axis "
    "scatter_add add_at random_bits".split())
#: ... that read each element once; of one number, the first give one number
REDUCTIONS = frozenset("all any argmax argmin max mean min sum".split())
READS = REDUCTIONS | {"cummax", "cumsum"}
TRANSFORMS = frozenset("fft ifft irfft rfft".split())
#: ... of whole matrices, or whose result's shape depends on values: run as they are, and not counted
WHOLE = frozenset(
    "cholesky_lower det eig_parts eigh_parts inv nonzero_places qr_parts searchsorted_rows slogdet_parts solve_rows svd_parts "
    "unique_parts".split())


class Outline(ArrayModuleBackend):
    """NumPy's engine in outline. It holds primitives alone: everything else is made of them here.

    Args:
        limit: the most elements that a new array, or one that values are really computed of, may have.
        budget: the most elements that all new arrays together may have.

    Attributes: flops, floating-point operations so far: 2 n for n multiply-adds, 1 for each element of an elementwise function, 5 N
    log2 N for a complex Fourier transform of length N, half of it for a real one.

    Raises ShapeError where the limit or the budget is passed.
    """

    remembered = False

    def __init__(self, limit: int = 1 << 40, budget: int = 1 << 50):
        super().__init__("numpy", np, NumpyRuntime())
        from ember_ml.backend.numpy import backend
        self.limit, self.left, self.flops = limit, budget, 0.0
        wrap = {**dict.fromkeys(ELEMENTWISE, self._each), **dict.fromkeys(MOVES | READS | TRANSFORMS | WHOLE, self._real),
                **dict.fromkeys(REDUCTIONS, self._reduce)}
        self.table = {name: wrap[name](name, backend.table[name]) for name in wrap if name in backend.table}
        self.table["matmul"] = self._matmul
        self.table["grouped_rows"] = lambda x, w, offsets, **_: self._product((x.shape[0], w.shape[1]), x.shape[1], x, w)
        self.table["grouped_outer_rows"] = lambda a, b, offsets, **_: self._product(
            (offsets.shape[0] - 1, a.shape[1], b.shape[1]), a.shape[0] / max(1, offsets.shape[0] - 1), a, b)
        self.table["random_bits"] = lambda key, shape: self.full(shape, 1, "uint32", None)

    def full(self, shape, value, dtype, device):
        self.reserve(math.prod(shape))
        return np.broadcast_to(np.asarray(value, self.native_dtype(dtype)), shape)

    def arange(self, start, stop, step, dtype, device):
        self.reserve(max(0, math.ceil((stop - start) / step)))
        return super().arange(start, stop, step, dtype, device)

    def from_numpy(self, array, dtype, device):
        self.reserve(np.asarray(array).size)
        return super().from_numpy(array, dtype, device)

    def astype(self, x, dtype):
        return np.broadcast_to(_number(x).astype(self.dtypes[dtype]), x.shape) if _is_one_number(x) else super().astype(x, dtype)

    def reserve(self, size: int):
        self.left -= size
        if size > self.limit or self.left < 0:
            raise ShapeError(f"outline: expected arrays of at most {self.limit} elements, and {self.left + size} more in all; got {size}")

    def _each(self, name: str, native):
        def run(*raw, **kw):
            arrays = [a for a in raw if isinstance(a, np.ndarray)]
            shape = np.broadcast_shapes(*(a.shape for a in arrays))
            if name != "astype":
                self.flops += math.prod(shape)
            if all(map(_is_one_number, arrays)):
                with np.errstate(all="ignore"):
                    return np.broadcast_to(native(*(_number(a) if isinstance(a, np.ndarray) else a for a in raw), **kw), shape)
            self._bound(math.prod(shape))
            with np.errstate(all="ignore"):
                return native(*raw, **kw)
        return run

    def _reduce(self, name: str, native):
        real = self._real(name, native)

        def run(x, *, axis=None, keepdims=False):
            if not x.size or not _is_one_number(x):
                return real(x, axis=axis, keepdims=keepdims)
            self.flops += x.size
            axes = {a % x.ndim for a in (range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis)}
            with np.errstate(all="ignore"):
                one = native(_number(x), axis=axis, keepdims=keepdims)
                if name == "sum":
                    terms = math.prod(x.shape[a] for a in axes)
                    one = one * one.dtype.type(terms if one.dtype in self.inexact else terms % 2**31)
            return np.broadcast_to(one, [1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes])
        return run

    def _real(self, name: str, native):
        def run(*raw, **kw):
            size = sum(a.size for a in raw if isinstance(a, np.ndarray))
            self._bound(size)
            with np.errstate(all="ignore"):
                y = native(*raw, **kw)
            if name in READS:
                self.flops += size
            elif name in TRANSFORMS:
                n = max(2, raw[0].shape[kw.get("axis", -1)], y.shape[kw.get("axis", -1)])
                full = max(raw[0].size * n / raw[0].shape[kw.get("axis", -1)], y.size * n / y.shape[kw.get("axis", -1)])
                self.flops += 5.0 * full * math.log2(n) * (0.5 if name in ("rfft", "irfft") else 1.0)
            return y
        return run

    def _matmul(self, x, y):
        if x.ndim < 1 or y.ndim < 1 or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
            raise ValueError(f"shapes {x.shape} and {y.shape} do not fit")
        rows, columns = x.shape[-2:-1], y.shape[-1:] if y.ndim > 1 else ()
        shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), *rows, *columns)
        return self._product(shape, x.shape[-1], x, y)

    def _product(self, shape, terms: float, x, y):
        """A product of that shape, each element a sum of `terms`."""
        self.flops += 2.0 * math.prod(shape) * terms
        return np.broadcast_to(np.zeros((), np.result_type(x, y)), shape)

    def _bound(self, size: int):
        if size > self.limit:
            raise ShapeError(f"outline: expected arrays of at most {self.limit} elements, got {size}")


def _is_one_number(x: np.ndarray) -> bool:
    return x.size == 1 or not any(stride for stride, n in zip(x.strides, x.shape) if n != 1)


def _number(x: np.ndarray) -> np.ndarray:
    """The one number of an array, with as many axes."""
    return x[(slice(0, 1),) * x.ndim] if x.size else np.zeros((1,) * x.ndim, x.dtype)
