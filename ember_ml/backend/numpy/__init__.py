"""The reference engine: NumPy on the CPU, gradients by Ember's tape, bfloat16 by ml_dtypes."""

from __future__ import annotations

import math
import platform
import resource
from contextlib import nullcontext

import ml_dtypes
import numpy as np

from ember_ml.backend.base import BackendBase
from ember_ml.backend.numpy import fftconv, moe, ops, scan, special
from ember_ml.errors import ShapeError, UnsupportedDevice, UnsupportedDtype
from ember_ml.tensor.common import dtypes as dt


class ArrayModuleBackend(BackendBase):
    """An engine on an array module with NumPy's interface; CuPy derives from it.

    Args:
        name: the engine's name. xp: the array module. runtime: see `Runtime`. add_into: see `ops.build`.
    """

    def __init__(self, name: str, xp, runtime, add_into=np.add.at):
        native = {d: np.dtype(ml_dtypes.bfloat16 if d is dt.bfloat16 else d.name) for d in dt.ALL}
        super().__init__(name, native, ops.build(xp, add_into), runtime)
        self.xp = xp
        self.array_types = (xp.ndarray, np.generic) if xp is np else (xp.ndarray,)
        self.weak_floats = self.inexact - {native[dt.bfloat16]}
        self.table["astype"] = lambda x, dtype: self.astype(x, dt.dtype(dtype))

    def outline(self, **limits):
        """An engine like this one that knows shapes and no values: see `ember_ml.backend.numpy.outline`."""
        from ember_ml.backend.numpy.outline import Outline
        return Outline(**limits)

    def scalar(self, value, dtype):
        """bfloat16 is no NumPy dtype of its own, so Python floats would widen it: they are made bfloat16 first."""
        return self.xp.asarray(value, self.dtypes[dtype]) if dtype is dt.bfloat16 else value

    def device_of(self, x) -> str:
        return "cpu"

    def astype(self, x, dtype):
        native = self.dtypes[dtype]
        return x if x.dtype == native else self.xp.asarray(x).astype(native)

    def from_python(self, data, dtype, device):
        """Python numbers, lists or arrays as a native array, always a copy."""
        return self.from_numpy(read_values(data, dtype), dtype, device)

    def from_numpy(self, array, dtype, device):
        self._check(device)
        return self.xp.array(array, dtype=self.dtypes[dtype] if dtype else array.dtype)

    def to_numpy(self, x):
        return np.array(x)

    def to_device(self, x, device: str):
        self._check(device)
        return x

    def _check(self, device: str | None):
        if device not in (None, "cpu"):
            raise UnsupportedDevice(f"{self.name}: has no device {device!r}; expected cpu")

    def to_dlpack(self, x, **kw):
        x = self.xp.asarray(x)
        if self.xp is np and not x.flags.writeable and kw.get("max_version") is None:
            x = x.copy()                                   # DLPack before 1.0 cannot say that memory is only to be read
        if kw.get("copy") and kw.get("dl_device") in (None, x.__dlpack_device__()):
            x, kw = x.copy(), {k: v for k, v in kw.items() if k != "copy"}      # CuPy copies to the CPU only
        return x.__dlpack__(**kw)

    def dlpack_device(self, x):
        return self.xp.asarray(x).__dlpack_device__()

    def share(self, x, device):
        try:
            return self.xp.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError):
            return None

    def full(self, shape, value, dtype, device):
        self._check(device)
        if value == 0:                                     # memory that is zero until someone writes costs nothing until then
            zeros = self.xp.zeros(shape, self.dtypes[dtype])
            return -zeros if isinstance(value, float) and math.copysign(1.0, value) < 0 else zeros
        return self.xp.full(shape, value, self.dtypes[dtype])

    def arange(self, start, stop, step, dtype, device):
        self._check(device)
        return self.xp.arange(start, stop, step).astype(self.dtypes[dtype])


def read_values(data, dtype=None) -> np.ndarray:
    """Values from Python or NumPy as an array in Ember's default dtypes. Raises ShapeError for ragged lists."""
    if hasattr(data, "dtype"):
        array = np.asarray(data)
        dt.dtype(array.dtype)
        return array
    try:
        array = np.array(data)
    except ValueError as e:
        raise ShapeError(f"tensor: expected nested lists of equal lengths; got {type(data).__name__}: {e}") from None
    if array.dtype.kind not in "biufc":
        raise UnsupportedDtype(f"tensor: expected numbers, got {type(data).__name__} of {array.dtype}")
    if dtype is not None:
        return array
    default = {"b": "bool", "i": "int32", "u": "uint64", "f": "float32", "c": "complex64"}[array.dtype.kind]
    if array.dtype.kind == "i" and array.size and (array.max() > 2 ** 31 - 1 or array.min() < -2 ** 31):
        raise OverflowError(f"tensor: {array.max()} does not fit int32, the default; pass dtype='int64'")
    return array.astype(default)


def read_dlpack(x) -> np.ndarray:
    """The values of another library's array, wherever they are."""
    try:
        return np.array(np.from_dlpack(x, device="cpu"))
    except (BufferError, RuntimeError, TypeError):
        if hasattr(x, "backend"):                        # bfloat16, which NumPy's DLPack does not know
            return x.numpy()
        raise


class NumpyRuntime:
    """NumPy runs eagerly, knows no gradients (the tape has them) and compiles nothing."""

    compiles = None
    has_gradients = False
    operator = None
    pull = None

    def with_rule(self, forward, rule, args, keeps_output=True):
        """The tape holds the rule; natively there is only the forward."""
        return forward(*args)

    def is_watched(self, x) -> bool:
        return False

    def read(self, x) -> list | None:
        return x.tolist()

    def untraced(self):
        return nullcontext()

    def inference(self):
        return nullcontext()

    def checkpoint(self, fn):
        return fn

    def compile(self, fn):
        return fn

    def stop_gradient(self, x):
        return x

    def after(self, natives, on):
        return natives

    def buffer(self, like, shape):
        return np.empty(shape, like.dtype)

    def synchronize(self, natives):
        """NumPy has computed by the time it returns."""

    def pace(self, natives):
        """NumPy has computed by the time it returns."""

    def long_run(self):
        return nullcontext()

    def peak_memory(self) -> int:
        """Largest resident size of the process so far, in bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024

    def reset_peak_memory(self):
        """The operating system keeps the largest value of the process; it cannot be reset."""

    def describe(self) -> dict[str, str]:
        return {"version": np.__version__, "device": "cpu"}


backend = ArrayModuleBackend("numpy", np, NumpyRuntime())
backend.table.update(erf=special.erf, erfinv=special.erfinv, **moe.TABLE, **scan.TABLE, **fftconv.TABLE,
                     cummax=lambda x, axis=0: np.maximum.accumulate(x, axis=axis),
                     cumlogsumexp=lambda x, axis=0: np.logaddexp.accumulate(x, axis=axis))
