"""NVIDIA GPUs through CuPy: NumPy's op table with `xp = cupy`, and Ember's own CUDA kernels."""

from __future__ import annotations

import cupy
import numpy as np

from ember_ml.backend.cupy.kernels import KERNELS
from ember_ml.backend.numpy import ArrayModuleBackend, NumpyRuntime
from ember_ml.backend.numpy.ops import remainder
from ember_ml.errors import BackendMissing, UnsupportedDevice


class CupyRuntime(NumpyRuntime):
    """Eager, gradients by the tape; memory is what CuPy's pool has taken from the device."""

    def buffer(self, like, shape):
        return cupy.empty(shape, like.dtype)

    def synchronize(self, natives):
        cupy.cuda.get_current_stream().synchronize()

    def peak_memory(self) -> int:
        """Bytes that CuPy's pool holds, which never shrinks by itself."""
        return cupy.get_default_memory_pool().total_bytes()

    def reset_peak_memory(self):
        cupy.get_default_memory_pool().free_all_blocks()

    def describe(self) -> dict[str, str]:
        props = cupy.cuda.runtime.getDeviceProperties(0)
        return {"version": cupy.__version__, "device": props["name"].decode(),
                "driver": str(cupy.cuda.runtime.driverGetVersion())}


class CupyBackend(ArrayModuleBackend):
    """CuPy as an engine."""

    default_device = "cuda:0"
    language = "cuda"

    def memory(self, device: str) -> int:
        return cupy.cuda.runtime.getDeviceProperties(int(device.partition(":")[2] or 0))["totalGlobalMem"]

    def devices(self) -> list[str]:
        return [f"cuda:{i}" for i in range(cupy.cuda.runtime.getDeviceCount())]

    def launchers(self, device: str) -> dict:
        return KERNELS

    def device_of(self, x) -> str:
        return f"cuda:{x.device.id}"

    def to_numpy(self, x):
        return cupy.asnumpy(x)

    def from_numpy(self, array, dtype, device):
        """CuPy fills arrays without axes by their value, and -0.0 with zero bits: through one axis all bits arrive."""
        self._check(device)
        array = np.asarray(array)
        return cupy.array(array.reshape(-1), dtype=self.dtypes[dtype] if dtype else array.dtype).reshape(array.shape)

    def to_device(self, x, device: str):
        self._check(device)
        with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
            return cupy.array(x)

    def _check(self, device: str | None):
        if device is not None and device.partition(":")[0] != "cuda":
            raise UnsupportedDevice(f"cupy: has no device {device!r}; expected cuda:0, cuda:1, ...")


#: what CUDA's atomic additions, and so cupy.add.at, know
_ADDED = frozenset("int32 uint32 uint64 float16 float32 float64".split())


def add_into(array, index, values):
    """cupy.add.at for every dtype: others are added in a wider one, complex numbers by their parts, int64 by its bits."""
    if array.dtype.name in _ADDED:
        cupy.add.at(array, index, values)
    elif array.dtype.kind == "c":
        parts = array.real.copy(), array.imag.copy()
        for part, value in zip(parts, (values.real, values.imag)):
            cupy.add.at(part, index, value)
        array[...] = parts[0] + 1j * parts[1]
    elif array.dtype.name == "int64":
        cupy.add.at(array.view("uint64"), index, values.astype("int64").view("uint64"))
    else:
        wide = array.astype("float32" if array.dtype.name == "bfloat16" else "int32")
        cupy.add.at(wide, index, values.astype(wide.dtype))
        array[...] = wide.astype(array.dtype)


_HALVES = ("float16", "bfloat16")
#: ops that CuPy has no bfloat16 of, or whose result it leaves in float32
_SINGLE = ("where", "floor_divide", "cumsum", "cumprod", "argsort", "sort")


def in_single(fn, names=("bfloat16",)):
    """`fn`, which arrays of those dtypes reach as float32; a result in float32 goes back to theirs."""
    def call(*args, **kw):
        narrow = next((a.dtype for a in args if isinstance(a, cupy.ndarray) and a.dtype.name in names), None)
        if narrow is None:
            return fn(*args, **kw)
        out = fn(*(a.astype("float32") if isinstance(a, cupy.ndarray) and a.dtype == narrow else a for a in args), **kw)
        return out.astype(narrow) if out.dtype.name == "float32" else out
    return call


def solve(a, b):
    """cupy.linalg.solve, which wants the leading axes of both to be there."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if 0 in (*lead, *b.shape[-2:]):
        return cupy.zeros((*lead, *b.shape[-2:]), b.dtype)
    a, b = (x if x.shape[:-2] == lead else cupy.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    return cupy.linalg.solve(a, b)


def _open() -> CupyBackend:
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise BackendMissing(f"cupy {cupy.__version__} is installed but finds no NVIDIA GPU ({e}); "
                             "use the numpy or torch engine on this machine") from None
    if count == 0:
        raise BackendMissing("cupy: the driver reports no NVIDIA GPU; use the numpy or torch engine on this machine")
    from cupyx.scipy import special                      # needs CUDA's libraries, so only once a device is known
    engine = CupyBackend("cupy", cupy, CupyRuntime(), add_into)
    engine.table.update({name: in_single(engine.table[name]) for name in _SINGLE if name in engine.table})
    engine.table.update(erf=in_single(special.erf, _HALVES), erfinv=in_single(special.erfinv, _HALVES), solve_rows=solve,
                        remainder=in_single(remainder(cupy)))
    return engine


backend = _open()
