"""New tensors. They go where `device` says, else beside `like`, else where `em.using` points."""

from __future__ import annotations

from ember_ml import backend as engines
from ember_ml.errors import BackendMismatch, ShapeError
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


def from_native(array) -> EmberTensor:
    """A native array of any engine as a tensor, without a copy: an mx.array, a torch.Tensor, a CuPy or NumPy array.

    A NumPy or torch array that is written to afterwards changes the tensor: hand it over or copy it first.
    """
    for name in engines.names():
        if engines.installed(name):
            backend = engines._loaded.get(name)
            if backend is None and type(array).__module__.partition(".")[0] == engines.KNOWN[name][1]:
                backend = engines.get(name)
            if backend is not None and isinstance(array, backend.array_types):
                backend.dtype_of(array)
                return EmberTensor(array, backend)
    raise TypeError(f"from_native: expected an array of one of {', '.join(engines.names())}; got {type(array).__name__}")


def _check_shape(shape) -> tuple[int, ...]:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if any(not isinstance(n, int) or n < 0 for n in shape):
        raise ShapeError(f"shape: expected lengths of at least 0, got {shape}")
    return shape


def full(shape, value, dtype=None, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor of that shape, every element `value` (a Python number)."""
    backend, where = _place(device, like)
    chosen = dt.dtype(dtype) if dtype is not None else dt.of_scalar(value)
    return EmberTensor(backend.full(_check_shape(shape), value, chosen, where), backend)


def zeros(shape, dtype=dt.float32, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype, device, like)


def ones(shape, dtype=dt.float32, device: str | None = None, like: EmberTensor | None = None) -> EmberTensor:
    """A tensor of ones."""
    return full(shape, 1, dtype, device, like)


def arange(start, stop=None, step=1, dtype=None, device: str | None = None,
           like: EmberTensor | None = None) -> EmberTensor:
    """start, start + step, ... below stop (from 0 if only one number is given); int32, or float32 if any is a float."""
    if stop is None:
        start, stop = 0, start
    backend, where = _place(device, like)
    floating = any(isinstance(v, float) for v in (start, stop, step))
    chosen = dt.dtype(dtype) if dtype is not None else dt.float32 if floating else dt.int32
    return EmberTensor(backend.arange(start, stop, step, chosen, where), backend)


def linspace(start: float, stop: float, num: int, dtype=dt.float32, device: str | None = None,
             like: EmberTensor | None = None) -> EmberTensor:
    """`num` evenly spaced numbers from start to stop, both included, computed in float64 and rounded once."""
    _place(device, like)[0].reserve(num)                # before Python has a list as long
    step = (stop - start) / max(num - 1, 1)
    values = [start + i * step for i in range(num)]
    if num > 1:
        values[-1] = float(stop)
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


def _like(value):
    return lambda x, dtype=None: full(x.shape, value, dtype or x.dtype, like=x)


EmberTensor.to = to
EmberTensor.zeros_like = _like(0)
EmberTensor.ones_like = _like(1)
zeros_like, ones_like = EmberTensor.zeros_like, EmberTensor.ones_like

