"""The op table of MLX, and shims for what MLX 0.32 lacks or defines otherwise. Each shim says why it is there."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as mlx_nn

from ember_ml.tensor.common import dtypes as dt
from ember_ml.tensor.common.index import fill
from ember_mlx.elementwise import is_integer

_SMALL = {mx.bool_: mx.int32, mx.int8: mx.int32, mx.int16: mx.int32, mx.uint8: mx.uint32, mx.uint16: mx.uint32}


def _accumulate(fn, of_nothing):
    """Sums and products. MLX chooses other dtypes for small integers, and may leave the result of one over no elements unwritten."""
    def call(x, axis=None, dtype=None, keepdims=False):
        if dtype is None and x.dtype not in _SMALL and x.size:
            return fn(x, axis=axis, keepdims=keepdims)
        native = _SMALL.get(x.dtype, x.dtype) if dtype is None else getattr(mx, dt.dtype(dtype).name)
        out = fn(x.astype(native), axis=axis, keepdims=keepdims).astype(native)
        return out if x.size else mx.full(out.shape, of_nothing, native)
    return call


def _matmul(x, y):
    if is_integer(x):                                   # MLX multiplies floating-point matrices only
        shape = mx.matmul(mx.zeros(x.shape), mx.zeros(y.shape)).shape
        left = x if x.ndim > 1 else x[None]
        right = y if y.ndim > 1 else y[:, None]
        return mx.sum(left[..., None] * right[..., None, :, :], axis=-2).reshape(shape).astype(x.dtype)
    return mx.matmul(x, y)


def _addmm(c, x, y):
    return c + _matmul(x, y) if is_integer(x) else mx.addmm(c, x, y)


@mx.custom_function
def _by_rows(x, weight):
    """x W^T through a copy of W that lies the other way: a BLAS without blocking, as in MLX's Linux builds, is a third slower without."""
    return mx.matmul(x, mx.contiguous(weight.T))


@_by_rows.vjp
def _by_rows_grad(primals, cotangent, _):
    x, weight = primals
    rows = mx.reshape(cotangent, (-1, cotangent.shape[-1]))
    return mx.matmul(cotangent, weight), mx.matmul(rows.T, mx.reshape(x, (-1, x.shape[-1])))


def _linear(x, weight, bias=None):
    many = x.size >= 64 * x.shape[-1] > 0 and mx.default_device() == mx.cpu and mx.issubdtype(x.dtype, mx.floating)
    y = _by_rows(x, weight) if many else _matmul(x, weight.T)
    return y if bias is None else y + bias


def _argsort(x, axis=-1, descending=False):
    if not descending:                                   # MLX's sort is a stable merge sort
        return mx.argsort(x, axis=axis).astype(mx.int32)
    back = mx.argsort(_flip(x, axis), axis=axis).astype(mx.int32)
    return x.shape[axis] - 1 - _flip(back, axis)


def _flip(x, axis=None):
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    turned = {a % x.ndim for a in axes}
    return x[tuple(slice(None, None, -1 if i in turned else None) for i in range(x.ndim))] if turned else x


def _cut(x, start, stop, axis=0):
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, stop),)]


def _split(x, sizes, axis=0):
    """mx.split, whose gradient joins the pieces; slices would each be padded to the whole."""
    ends, places = 0, []
    for size in sizes[:-1]:
        ends += size
        places.append(ends)
    return tuple(mx.split(x, places, axis=axis))


_fixed = mx.stop_gradient                                # MLX refuses indices that hang on a differentiated input
# Where the array that is read is empty, its gradient would be scattered into nothing, and MLX dies of a division by zero:
# `x.size` below keeps it from trying.


def _scatter_add(x, indices, updates, axis=0):
    if updates.size == 0:                                # MLX refuses to add nothing, and dies of adding it to nothing
        return x
    rows = updates.reshape(x.shape[:axis] + (-1,) + x.shape[axis + 1:])
    return x.at[(slice(None),) * axis + (_fixed(indices).reshape(-1),)].add(rows.astype(x.dtype))


def _put_add_along_axis(x, indices, updates, axis):
    if updates.size == 0:
        return x
    grid = [mx.arange(n).reshape([-1 if i == j else 1 for j in range(indices.ndim)])
            for i, n in enumerate(indices.shape)]
    grid[axis] = _fixed(indices)
    return x.at[tuple(grid)].add(updates.astype(x.dtype))


def _set_at(x, values, *tensors, index):
    if x.size == 0 or any(t.size == 0 for t in tensors):   # MLX refuses to write nothing
        return x
    out = mx.array(x)
    out[_filled(index, tensors)] = values
    return out


def _add_at(x, values, *tensors, index):
    """x[index] += values. MLX's `at` mixes up None with index arrays, so the flat places are found by indexing first."""
    flat = _filled(index, tensors)
    if None not in [part for part in flat if not isinstance(part, mx.array)]:
        return x.at[flat].add(values.astype(x.dtype))
    places = mx.arange(x.size).reshape(x.shape)[flat]
    values = mx.broadcast_to(values.astype(x.dtype), places.shape)
    return x.reshape(-1).at[places.reshape(-1)].add(values.reshape(-1)).reshape(x.shape)


def _get_at(x, *tensors, index):
    return x[_filled(index, tensors)] if x.size else mx.stop_gradient(x[_filled(index, tensors)])


def _take(x, i, axis=0):
    return mx.take(x, _fixed(i), axis) if x.size else mx.zeros((*x.shape[:axis], *i.shape, *x.shape[axis + 1:]), x.dtype)


def _gather_along(x, i, axis):
    return mx.take_along_axis(x, _fixed(i), axis) if x.size else mx.zeros(i.shape, x.dtype)


def _filled(index, tensors):
    return fill(index, [_fixed(t) for t in tensors])


def _fft(fn):
    return lambda x, n=None, axis=-1, norm="backward": fn(x, n=n, axis=axis, norm=norm)


def _random_bits(key, shape):
    n = 1
    for length in shape:
        n *= length
    if n == 0:
        return mx.zeros(shape, mx.uint32)
    if n % 2 == 0:                                       # split is the public door to MLX's raw bits
        return mx.random.split(key, n // 2).reshape(shape)
    half = (n + 1) // 2
    low = mx.arange(half, dtype=mx.uint32)
    high = mx.where(low == half - 1, mx.array(0, mx.uint32), low + half)
    x, y = _rounds(key, low, high.astype(mx.uint32))
    return mx.concatenate((x, y))[:n].reshape(shape)


def _rounds(key, x, y):
    """Threefry-2x32, for odd counts and for single counters."""
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    words = (key[0], key[1], key[0] ^ key[1] ^ mx.array(0x1BD11BDA, mx.uint32))
    x, y = x + words[0], y + words[1]
    for i in range(5):
        for r in rotations[i % 2]:
            x = x + y
            y = x ^ ((y << r) | (y >> (32 - r)))
        x, y = x + words[(i + 1) % 3], y + words[(i + 2) % 3] + mx.array(i + 1, mx.uint32)
    return x, y


def _fold(key, number):
    counter = number.astype(mx.uint32).reshape(1)
    x, y = _rounds(key, mx.zeros_like(counter), counter)
    return mx.concatenate((x, y))


def _grouped_rows(x, w, offsets, *, block, complete):
    """Whole blocks through gather_mm, one expert each: rows of a product share their matrix, and nothing waits for the offsets.

    gather_mm by single rows is one small product per row on a CPU.
    """
    rows = x.shape[0]
    if rows == 0:
        return mx.zeros((0, w.shape[1]), x.dtype)
    firsts = mx.arange(rows // block, dtype=mx.int32) * block
    experts = mx.minimum(mx.sum(offsets[1:] <= firsts[:, None], axis=1), w.shape[0] - 1).astype(mx.uint32)
    narrow = x.dtype != mx.float32 and mx.default_device() == mx.cpu           # where gather_mm knows float32 only
    a, b = (t.astype(mx.float32) if narrow else t for t in (x, w))
    y = mx.gather_mm(a.reshape(rows // block, block, -1), b.swapaxes(1, 2), rhs_indices=experts, sorted_indices=True)
    y = y.reshape(rows, w.shape[1]).astype(x.dtype)
    return y if complete else mx.where((mx.arange(rows, dtype=mx.int32) < offsets[-1])[:, None], y, 0.0)


def _grouped_outer(a, b, offsets, *, block, complete):
    if a.shape[0] == 0:
        return mx.zeros((offsets.shape[0] - 1, a.shape[1], b.shape[1]), a.dtype)
    return mx.segmented_mm(a.T, b, mx.stack([offsets[:-1], offsets[1:]], axis=1).astype(mx.uint32))


def _place_of(fn):
    def call(x, axis=None, keepdims=False):
        if x.size == 0 and axis is not None and x.shape[axis]:       # MLX refuses an empty array though no line of it is empty
            return mx.sum(x, axis=axis, keepdims=keepdims).astype(mx.int32)
        return fn(x, axis=axis, keepdims=keepdims).astype(mx.int32)
    return call


def _of_nothing(fn, value, axis=None):
    """A reduction, which over no elements is `value`, in bools if that is one. MLX leaves such results of `all` and `any` unwritten, refuses
    `logsumexp`, and on a CPU may never come back from `mean`, whose sum it multiplies by 1 / 0.
    """
    def call(x, axis=axis, keepdims=False):
        if x.size:
            return fn(x, axis=axis, keepdims=keepdims)
        return mx.full(mx.any(x, axis=axis, keepdims=keepdims).shape, value, mx.bool_ if isinstance(value, bool) else x.dtype)
    return call


def _attention(q, k, v, mask=None, *, causal, scale):
    """mx.fast's, which takes four axes and one mask."""
    lead = q.shape[:-3]
    if len(lead) != 1:
        q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
        mask = mask if mask is None or mask.ndim <= 3 else mx.broadcast_to(mask, (*lead, *mask.shape[-3:])).reshape(-1, *mask.shape[-3:])
    if causal and mask is not None:
        length, keys = q.shape[-2], k.shape[-2]
        low = mx.triu(mx.full((length, keys), -1e30 if q.dtype == mx.float32 else -6e4, q.dtype), keys - length + 1)
        mask, causal = mask + low, False
    y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal" if causal else mask)
    return y if len(lead) == 1 else y.reshape(*lead, *y.shape[1:])


TABLE = {
    "sum": _accumulate(mx.sum, 0), "prod": _accumulate(mx.prod, 1),
    "mean": _of_nothing(mx.mean, float("nan")), "max": mx.max, "min": mx.min, "argmax": _place_of(mx.argmax), "argmin": _place_of(mx.argmin),
    "all": _of_nothing(mx.all, True), "any": _of_nothing(mx.any, False),
    "logsumexp": _of_nothing(mx.logsumexp, -float("inf"), axis=-1),
    "cumsum": lambda x, axis=0: mx.cumsum(x, axis=axis), "cummax": lambda x, axis=0: mx.cummax(x, axis=axis),
    "cumlogsumexp": lambda x, axis=0: mx.logcumsumexp(x, axis=axis),
    "reshape": mx.reshape, "permute_dims": mx.transpose, "broadcast_to": mx.broadcast_to,
    "concat_all": lambda *xs, axis=0: mx.concatenate(xs, axis), "cut": _cut, "pad": mx.pad,
    "split_all": _split,
    "flip": _flip, "matmul": _matmul, "addmm": _addmm, "linear_rows": _linear,
    "take_axis": _take, "scatter_add": _scatter_add, "gather_along": _gather_along,
    "put_add_along_axis": _put_add_along_axis,
    "get_at": _get_at, "set_at": _set_at,
    "add_at": _add_at,
    "grouped_rows": _grouped_rows, "grouped_outer_rows": _grouped_outer,
    "argsort": _argsort, "fft": _fft(mx.fft.fft), "ifft": _fft(mx.fft.ifft), "rfft": _fft(mx.fft.rfft),
    "irfft": _fft(mx.fft.irfft), "random_bits": _random_bits, "fold": _fold,
    "sigmoid": mx.sigmoid, "silu": mlx_nn.silu, "gelu": mlx_nn.gelu,
    "softmax": lambda x, axis=-1: mx.softmax(x, axis=axis),
    "attention_rows": _attention,
    "layer_norm": lambda x, weight, bias, eps: mx.fast.layer_norm(x, weight, bias, eps),
    "rms_norm": lambda x, weight, eps: mx.fast.rms_norm(x, weight, eps),
}
