"""The op table on an array module `xp`: NumPy here, CuPy on NVIDIA GPUs. Everything else is a composite.

Rules that hold for every entry: native arrays in and out, no in-place change of an input, dtypes as the op says (the caller has
promoted already). bfloat16 comes from ml_dtypes; where its NumPy functions widen the result, it is rounded back.
"""

from __future__ import annotations

from ember_ml.backend.numpy import linalg, moe, search
from ember_ml.tensor.common import dtypes as dt
from ember_ml.tensor.common.index import fill


def build(xp, add_into) -> dict:
    """op name -> function, for the ops whose NumPy form differs little between NumPy and CuPy.

    Args:
        add_into: `(array, index, values)`, which adds in place and adds up where an element is named twice: `xp.add.at`.
    """

    def unary(fn):
        def call(x):
            out = fn(x)
            return out if out.dtype == x.dtype else out.astype(x.dtype)
        return call

    def floor_divide(x, y):
        """Where an operand is infinite, NumPy gives nan or -1 for what the standard defines as the quotient."""
        out = xp.floor_divide(x, y)
        if out.dtype.kind in "iu":
            return out
        return xp.where(xp.isinf(x) | xp.isinf(y), xp.divide(x, y), out)

    def expm1(x):
        """e^x - 1. NumPy's complex one loses the digits near 0, and turns infinite and signed zero parts into nan."""
        if x.dtype.kind != "c":
            return unary(xp.expm1)(x)
        a, b = x.real, x.imag
        half = xp.sin(b / 2)
        real, imag = xp.expm1(a) * xp.cos(b) - 2 * half * half, xp.exp(a) * xp.sin(b)
        real = xp.where(b == 0, xp.expm1(a) + 0.0, real)
        imag = xp.where(b == 0, b, imag)
        edge = xp.isinf(a) & ~xp.isfinite(b)                # nothing, or infinity, turned by no angle
        real = xp.where(edge, xp.expm1(a), real)
        return _complex(real, xp.where(edge, xp.where(a < 0, xp.zeros_like(a), xp.nan), imag), x.dtype)

    def tanh(x):
        """NumPy leaves the sign of a zero imaginary part beside an infinite real one to its vector units: it is that of b here."""
        y = unary(xp.tanh)(x)
        if x.dtype.kind != "c":
            return y
        edge = xp.isinf(x.real) & xp.isfinite(x.imag)
        return _complex(y.real, xp.where(edge, xp.copysign(xp.zeros_like(x.imag), x.imag), y.imag), x.dtype)

    def _complex(real, imag, dtype):
        out = xp.empty(real.shape, dtype)                   # real + 1j * imag would make nan of an infinite part
        out.real, out.imag = real, imag
        return out

    def small_sum(x, axis=None, dtype=None, keepdims=False):
        if dtype is not None:
            name = dt.dtype(dtype).name
            return small_sum(x.astype(name), axis, None, keepdims).astype(name)
        kind, size = x.dtype.kind, x.dtype.itemsize
        wide = {"b": "int32", "i": "int32", "u": "uint32"}.get(kind) if size < 4 else None
        if kind == "V" or x.dtype.name == "bfloat16":
            return xp.sum(x.astype("float32"), axis=axis, keepdims=keepdims).astype(x.dtype)
        return xp.sum(x, axis=axis, keepdims=keepdims, dtype=wide or x.dtype)

    def mean(x, axis=None, keepdims=False):
        wide = x.astype("float32") if x.dtype.itemsize < 4 else x
        return xp.mean(wide, axis=axis, keepdims=keepdims).astype(x.dtype)

    def matmul(x, y):
        if x.dtype.itemsize < 4 and x.dtype.kind not in "iub":
            return xp.matmul(x.astype("float32"), y.astype("float32")).astype(x.dtype)
        return xp.matmul(x, y)

    def argmax(x, axis=None, keepdims=False):
        return xp.argmax(x, axis=axis, keepdims=keepdims).astype("int32")

    def prod(x, axis=None, dtype=None, keepdims=False):
        name = (dt.accumulator(dt.dtype(x.dtype)) if dtype is None else dt.dtype(dtype)).name
        return xp.prod(x, axis=axis, dtype=name, keepdims=keepdims)

    def argmin(x, axis=None, keepdims=False):
        return xp.argmin(x, axis=axis, keepdims=keepdims).astype("int32")

    def argsort(x, axis=-1, descending=False):
        if not descending:
            return xp.argsort(x, axis=axis, kind="stable").astype("int32")
        # Descending and stable: sort the reversed sequence, read it backwards, and mirror the indices.
        back = xp.argsort(xp.flip(x, axis=axis), axis=axis, kind="stable")
        return (x.shape[axis] - 1 - xp.flip(back, axis=axis)).astype("int32")

    def cut(x, start, stop, axis=0):
        return x[(slice(None),) * (axis % x.ndim) + (slice(start, stop),)]

    def scatter_add(x, indices, updates, axis=0):
        out = x.copy()
        # The axis comes first, so that one index array addresses it whatever the other axes are.
        view = xp.moveaxis(out, axis, 0)
        rows = xp.moveaxis(updates.reshape(x.shape[:axis] + (indices.size,) + x.shape[axis + 1:]), axis, 0)
        add_into(view, indices.reshape(-1), rows.astype(x.dtype))
        return out

    def put_add_along_axis(x, indices, updates, axis):
        out = x.copy()
        grid = [xp.arange(n).reshape((-1,) + (1,) * (x.ndim - 1 - i)) for i, n in enumerate(indices.shape)]
        grid[axis] = indices
        add_into(out, tuple(grid), updates.astype(x.dtype))
        return out

    def set_at(x, values, *tensors, index):
        out = xp.array(x)                                # an array also where x is a number of NumPy's
        out[fill(index, tensors)] = values
        return out

    def add_at(x, values, *tensors, index):
        out = x.copy()
        add_into(out, fill(index, tensors), values.astype(x.dtype))
        return out

    def transform(fn):
        def call(x, n=None, axis=-1, norm="backward"):
            return fn(x, n=n, axis=axis, norm=norm)
        return call

    def astype(x, dtype):
        raise NotImplementedError                        # the engine's own cast replaces this entry

    bits = _threefry(xp)
    return {
        "add": xp.add, "subtract": xp.subtract, "multiply": xp.multiply, "divide": xp.divide,
        "floor_divide": floor_divide, "remainder": xp.remainder, "pow": xp.power,
        "maximum": xp.maximum, "minimum": xp.minimum, "negative": xp.negative, "abs": xp.abs,
        "sign": unary(xp.sign), "sqrt": unary(xp.sqrt), "exp": unary(xp.exp), "exp2": unary(xp.exp2), "expm1": expm1,
        "log": unary(xp.log), "log1p": unary(xp.log1p), "atan2": xp.arctan2, "sin": unary(xp.sin), "cos": unary(xp.cos),
        "tanh": tanh, "floor": unary(xp.floor), "round": unary(xp.round),
        "tan": unary(xp.tan), "asin": unary(xp.arcsin), "acos": unary(xp.arccos), "atan": unary(xp.arctan),
        "sinh": unary(xp.sinh), "cosh": unary(xp.cosh), "asinh": unary(xp.arcsinh), "acosh": unary(xp.arccosh),
        "atanh": unary(xp.arctanh), "hypot": xp.hypot, "log2": unary(xp.log2), "log10": unary(xp.log10),
        "logaddexp": xp.logaddexp, "ceil": unary(xp.ceil), "trunc": unary(xp.trunc), "reciprocal": unary(xp.reciprocal),
        "isinf": xp.isinf, "isnan": xp.isnan, "signbit": xp.signbit, "copysign": xp.copysign, "nextafter": xp.nextafter,
        "bitwise_and": xp.bitwise_and, "bitwise_or": xp.bitwise_or, "bitwise_xor": xp.bitwise_xor,
        "bitwise_left_shift": xp.left_shift, "bitwise_right_shift": xp.right_shift, "bitwise_invert": xp.invert,
        "logical_xor": xp.logical_xor,
        "conj": lambda x: xp.conj(x) if x.dtype.kind == "c" else x,
        "real": lambda x: x.real.copy() if x.dtype.kind == "c" else x,
        "imag": lambda x: x.imag.copy(),
        "complex": lambda x, y: _complex(*xp.broadcast_arrays(x, y), "complex128" if x.dtype.itemsize == 8 else "complex64"),
        "where": xp.where, "equal": xp.equal, "not_equal": xp.not_equal, "less": xp.less, "less_equal": xp.less_equal,
        "greater": xp.greater, "greater_equal": xp.greater_equal, "logical_and": xp.logical_and,
        "logical_or": xp.logical_or, "logical_not": xp.logical_not, "isfinite": xp.isfinite, "astype": astype,
        "sum": small_sum, "mean": mean, "max": xp.max, "min": xp.min, "argmax": argmax, "all": xp.all, "any": xp.any,
        "prod": prod, "argmin": argmin, "cumprod": lambda x, axis=0: xp.cumprod(x, axis=axis, dtype=x.dtype),
        "cumsum": lambda x, axis=0: xp.cumsum(x, axis=axis, dtype=x.dtype),
        "reshape": xp.reshape, "permute_dims": xp.transpose, "broadcast_to": xp.broadcast_to,
        "concat_all": lambda *xs, axis=0: xp.concatenate(xs, axis=axis), "cut": cut, "pad": xp.pad,
        "flip": lambda x, axis=None: xp.flip(x, axis=axis), "matmul": matmul,
        "take_axis": lambda x, i, axis=0: xp.take(x, i, axis=axis), "scatter_add": scatter_add,
        "gather_along": lambda x, i, axis: xp.take_along_axis(x, i.astype("int64"), axis=axis),
        "put_add_along_axis": put_add_along_axis,
        "get_at": lambda x, *tensors, index: x[fill(index, tensors)], "set_at": set_at, "add_at": add_at,
        "argsort": argsort, "fft": transform(xp.fft.fft), "ifft": transform(xp.fft.ifft),
        "rfft": transform(xp.fft.rfft), "irfft": transform(xp.fft.irfft),
        **moe.build(xp), **linalg.build(xp), **search.build(xp), "random_bits": bits, "fold": lambda key, number: _fold(xp, key, number),
    }


def remainder(xp):
    """x - y floor(x / y) for an array module, such as CuPy, that has nan for an infinite y, and a zero with the sign of x."""
    def call(x, y):
        like = x if hasattr(x, "dtype") else y
        x, y = (v if hasattr(v, "dtype") else xp.asarray(v, like.dtype) for v in (x, y))
        out = xp.remainder(x, y)
        if out.dtype.kind in "iu":
            return out
        inside = (x == 0) | (xp.signbit(x) == xp.signbit(y))          # of [0, y), where y is infinite
        out = xp.where(xp.isinf(y) & xp.isfinite(x), xp.where(inside, x, y), out)
        return xp.where(out == 0, xp.copysign(out, y), out)
    return call


def _rounds(xp, key, x, y):
    """Threefry-2x32 with 20 rounds on two arrays of counters."""
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    first, second = key[0], key[1]
    words = (first, second, first ^ second ^ xp.uint32(0x1BD11BDA))
    x, y = x + words[0], y + words[1]
    for i in range(5):
        for r in rotations[i % 2]:
            x = x + y
            y = (y << xp.uint32(r)) | (y >> xp.uint32(32 - r))
            y = x ^ y
        x, y = x + words[(i + 1) % 3], y + words[(i + 2) % 3] + xp.uint32(i + 1)
    return x, y


def _threefry(xp):
    def bits(key, shape):
        n = 1
        for length in shape:
            n *= length
        half = (n + 1) // 2
        low = xp.arange(half, dtype="uint32")
        high = low + xp.uint32(half)
        if n % 2:                                        # the odd word in the middle is paired with counter 0
            high[-1] = 0
        x, y = _rounds(xp, key.astype("uint32"), low, high)
        return xp.concatenate((x, y))[:n].reshape(shape)
    return bits


def _fold(xp, key, number):
    x, y = _rounds(xp, key.astype("uint32"), xp.zeros((1,), "uint32"), number.astype("uint32").reshape(1))
    return xp.concatenate((x, y))
