"""New tensors. They go where `device` says, else beside `like`, else where `em.using` points."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce
from operator import index

from ember_ml import backend as engines
from ember_ml.errors import BackendMismatch, ShapeError, memory_told
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def _place(device, like):
    if device is None and like is not None:
        return like.backend, like.backend.device_of(like.data)
    return engines.parse(device)


def tensor(data, dtype=None, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor of Python numbers, nested lists, a NumPy array, or another EmberTensor (copied, moved or cast as asked).

    Args:
        data: the values. Python floats become float32, ints int32; arrays keep their dtype.
        dtype: element type; None as above.
        device: "torch", "torch:cuda:0", ...; None for `like`'s, else the current engine.
        like: a tensor whose engine and device to share.

    Raises:
        UnsupportedDtype: the engine cannot hold the dtype (float64 on MLX, say): nothing is cast down silently.
        ShapeError: ragged lists.
    """
    if isinstance(data, EmberTensor):
        moved = data if device is None and like is None else to(data, device or like.device)
        return moved if dtype is None else moved.astype(dtype)
    backend, where = _place(device, like)
    wanted = None if dtype is None else dt.dtype(dtype)
    return EmberTensor(backend.from_python(data, wanted, where), backend)


def _made(build, static, dtype, backend, where):
    with backend.runtime.untraced():                     # it outlives the graph in which it is first asked for
        return backend.from_python(build(*static), dtype, where)


_kept = lru_cache(maxsize=256)(_made)


def constant(build: Callable, *static, dtype, like: EmberTensor) -> EmberTensor:
    """The Python numbers that `build(*static)` returns as a tensor beside `like`: made once for each engine and device.

    For what a formula needs at every call and no input changes, such as masks and rates.
    """
    backend = like.backend
    make = _kept if backend.remembered else _made
    return EmberTensor(make(build, static, dt.dtype(dtype), backend, backend.device_of(like.data)), backend)


def from_native(array) -> EmberTensor:
    """A native array of any engine as a tensor, without a copy: an mx.array, a torch.Tensor, a CuPy or NumPy array.

    A NumPy or torch array that is written to afterwards changes the tensor: hand it over or copy it first.
    """
    for name in engines.names():
        if engines.installed(name):
            backend = engines._loaded.get(name)
            if backend is None and name in engines.KNOWN and type(array).__module__.partition(".")[0] == engines.KNOWN[name][1]:
                backend = engines.get(name)
            if backend is not None and isinstance(array, backend.array_types):
                backend.dtype_of(array)
                return EmberTensor(array, backend)
    raise TypeError(f"from_native: expected an array of one of {', '.join(engines.names())}; got {type(array).__name__}")


def check_shape(shape) -> tuple[int, ...]:
    """A shape as a tuple, from one length or several. Raises ShapeError for what is no shape."""
    found = tuple(shape) if hasattr(shape, "__iter__") else (shape,)
    if any(not hasattr(n, "__index__") or n < 0 for n in found):
        raise ShapeError(f"shape: expected lengths of at least 0, such as (2, 3), got {shape!r}")
    return tuple(map(index, found))


def asarray(obj, dtype=None, device: str | None = None, copy: bool | None = None) -> EmberTensor:
    """`tensor`, that also takes lists with tensors in them and arrays of other libraries that speak DLPack.

    Args:
        copy: True: always copy. False: raise ValueError where values must be copied; a tensor comes back itself. None: copy where
            needed, but share the memory of a DLPack array.
    """
    if isinstance(obj, EmberTensor):
        where = None
        if device is not None:
            engine, place = engines.parse(device)
            where = f"{engine.name}:{place}"
        if copy is False and (dtype is not None and dt.dtype(dtype) is not obj.dtype or where not in (None, obj.device)):
            raise ValueError(f"asarray: expected a copy to be allowed, or a tensor of dtype {dtype or obj.dtype} on {device}; "
                             f"got {obj.dtype} on {obj.device}")
        if copy is False:
            return obj
        found = tensor(obj, dtype, device)
        return EmberTensor(obj.data, obj.backend, obj.node) if copy and found is obj else found
    if hasattr(obj, "__dlpack__") and not hasattr(obj, "__array_interface__"):
        return tensor(from_dlpack(obj, device=device, copy=copy), dtype)
    if copy is False:
        raise ValueError(f"asarray: expected copy=None or True for a {type(obj).__name__}, whose values must be copied; got False")
    if isinstance(obj, (list, tuple)):
        dtypes, numbers = set(), []
        obj = _opened(obj, dtypes, numbers)
        if dtype is None and dtypes:
            dtype = reduce(dt.weak_result, numbers, reduce(dt.promote, dtypes))
    return tensor(obj, dtype, device)


def _opened(obj, dtypes: set, numbers: list):
    """Nested lists with tensors as their values; the tensors' dtypes, and the numbers beside them, are noted down."""
    if isinstance(obj, EmberTensor):
        dtypes.add(obj.dtype)
        return obj.tolist()
    if isinstance(obj, (list, tuple)):
        return [_opened(part, dtypes, numbers) for part in obj]
    numbers.append(obj)
    return obj


def from_dlpack(x, device: str | None = None, copy: bool | None = None) -> EmberTensor:
    """An array of another library, or a tensor, as a tensor of the current engine or of `device`.

    Memory is shared where that engine can read it (whoever writes to it then changes the tensor), else the values are copied through
    NumPy. copy=True always copies; copy=False raises BufferError where the memory cannot be shared.
    """
    backend, where = engines.parse(device)
    return EmberTensor(backend.from_dlpack(x, where, copy), backend)


def full(shape, fill_value, dtype=None, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor of that shape, every element `fill_value` (a Python number)."""
    backend, where = _place(device, like)
    chosen, shape = dt.dtype(dtype) if dtype is not None else dt.of_scalar(fill_value), check_shape(shape)
    with memory_told(backend.name, lambda: f"full, a tensor of {chosen}{list(shape)}"):
        return EmberTensor(backend.full(shape, fill_value, chosen, where), backend)


def zeros(shape, dtype=dt.float32, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype or dt.float32, device, like)


def ones(shape, dtype=dt.float32, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor of ones."""
    return full(shape, 1, dtype or dt.float32, device, like)


def empty(shape, dtype=dt.float32, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor whose values mean nothing yet: zeros, so that two runs are alike."""
    return zeros(shape, dtype, device, like)


def eye(n_rows: int, n_cols: int | None = None, k: int = 0, dtype=None, device: str | None = None,
        like: EmberTensor | None = None) -> EmberTensor:
    """A matrix of zeros with ones on its k-th diagonal (above the main one for k > 0)."""
    n_cols = n_rows if n_cols is None else n_cols
    check_shape((n_rows, n_cols))
    k = min(max(k, -n_rows), n_cols)                      # further out there is none: no number that int32 cannot hold
    rows = arange(n_rows, device=device, like=like).reshape(n_rows, 1)
    return (arange(n_cols, like=rows) - rows == k).astype(dtype or dt.float32)


def arange(start, stop=None, step=1, dtype=None, device: str | None = None,
           like: EmberTensor | None = None) -> EmberTensor:
    """start, start + step, ... below stop (from 0 if only one number is given); int32, or float32 if any is a float."""
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ValueError(f"arange: expected a step other than 0 from {start} to {stop}")
    backend, where = _place(device, like)
    floating = any(isinstance(v, float) for v in (start, stop, step))
    chosen = dt.dtype(dtype) if dtype is not None else dt.float32 if floating else dt.int32
    return EmberTensor(backend.arange(start, stop, step, chosen, where), backend)


def linspace(start: float, stop: float, num: int, dtype=None, device: str | None = None,
             like: EmberTensor | None = None, endpoint: bool = True) -> EmberTensor:
    """`num` evenly spaced numbers from start to stop (left out without `endpoint`), computed in float64 and rounded once.

    dtype None: float32, or complex64 if a bound is complex.
    """
    if not hasattr(num, "__index__") or num < 0:
        raise ShapeError(f"linspace: expected num of at least 0, got {num!r}")
    _place(device, like)[0].reserve(num)                # before Python has a list as long
    step = (stop - start) / max(num - endpoint, 1)
    values = [start + i * step for i in range(num)]
    if num > 1 and endpoint:
        values[-1] = stop
    if dtype is None:
        dtype = dt.complex64 if isinstance(start, complex) or isinstance(stop, complex) else dt.float32
    return tensor(values, dtype=dtype, device=device, like=like)


def to(x: EmberTensor, device: str) -> EmberTensor:
    """x on another engine or device, such as "numpy", "torch:cuda:0" or "mlx". Values and dtype are kept.

    Across engines the values go through NumPy; the gradient does not follow: move inputs before the gradient is taken.

    Raises UnsupportedDtype if the target cannot hold x's dtype; BackendMismatch while a gradient is recorded.
    """
    backend, where = engines.parse(device)
    if backend is x.backend:
        return EmberTensor(backend.to_device(x.data, where), backend, x.node)
    if x.node is not None:
        raise BackendMismatch(f"to: a gradient is being taken on {x.backend.name}, it cannot follow the tensor to "
                              f"{backend.name}; move the inputs first")
    return EmberTensor(backend.from_numpy(x.backend.to_numpy(x.data), x.dtype, where), backend)


def full_like(x: EmberTensor, fill_value, dtype=None, device: str | None = None) -> EmberTensor:
    """A tensor of x's shape, dtype and device unless told otherwise, every element `fill_value`."""
    return full(x.shape, fill_value, dtype or x.dtype, device, x)


def zeros_like(x: EmberTensor, dtype=None, device: str | None = None) -> EmberTensor:
    """A tensor of zeros of x's shape, dtype and device unless told otherwise."""
    return full(x.shape, 0, dtype or x.dtype, device, x)


def ones_like(x: EmberTensor, dtype=None, device: str | None = None) -> EmberTensor:
    """A tensor of ones of x's shape, dtype and device unless told otherwise."""
    return full(x.shape, 1, dtype or x.dtype, device, x)


def empty_like(x: EmberTensor, dtype=None, device: str | None = None) -> EmberTensor:
    """`empty` in x's shape, dtype and device unless told otherwise."""
    return zeros_like(x, dtype, device)


def _to_device(x: EmberTensor, device: str, /, *, stream=None) -> EmberTensor:
    """`to` under the array API's name. Engines order their own work: a stream cannot be chosen."""
    if stream is not None:
        raise ValueError(f"to_device: expected stream=None, engines order their work themselves; got {stream!r}")
    return to(x, device)


EmberTensor.to, EmberTensor.to_device = to, _to_device
EmberTensor.zeros_like, EmberTensor.ones_like = zeros_like, ones_like
