"""The Apple side of Ember: MLX as an engine, its op table, its runtime, and the launchers of the Metal kernels."""

from __future__ import annotations

import mlx.core as mx

from ember_ml.backend.base import BackendBase
from ember_ml.backend.numpy import read_values
from ember_ml.errors import UnsupportedDevice
from ember_ml.tensor.common import dtypes as dt
from ember_mlx import elementwise, fftconv, kernels, lent, linalg, moe
from ember_mlx.host import from_numpy, to_numpy
from ember_mlx.ops import TABLE
from ember_mlx.runtime import MlxRuntime

#: MLX computes float64 on the CPU only and has no complex128: neither is a dtype of this engine
_DTYPES = {d: getattr(mx, "bool_" if d is dt.bool_ else d.name) for d in dt.ALL if d not in (dt.float64, dt.complex128)}


class MlxBackend(BackendBase):
    """MLX as an engine. One device at a time: "gpu" with Metal (or CUDA), else "cpu"; memory is shared by both."""

    array_types = (mx.array,)
    language = "metal"
    masks = False                                          # x[mask] has a shape that a lazy engine cannot know
    host = linalg.HOST | moe.TABLE.keys()

    def __init__(self):
        super().__init__("mlx", _DTYPES, {**TABLE, **elementwise.TABLE, **linalg.TABLE, **fftconv.TABLE, **moe.TABLE}, MlxRuntime())
        self.weak_floats = self.inexact
        self.table["astype"] = lambda x, dtype: self.astype(x, dt.dtype(dtype))

    @property
    def default_device(self) -> str:
        return "gpu" if mx.default_device() == mx.gpu else "cpu"

    def device_of(self, x) -> str:
        return self.default_device

    def memory(self, device: str) -> int:
        """Beyond what Metal recommends, macOS swaps or ends the process."""
        return mx.device_info()["max_recommended_working_set_size"] if mx.metal.is_available() else super().memory(device)

    def launchers(self, device: str) -> dict:
        return kernels.KERNELS if kernels.available() else {}

    def grouped_block(self, rows: int, groups: int) -> int:
        """A power of two near the mean group: less is slower per row, more fills up more rows than it saves."""
        return min(max(1 << (max(rows // groups, 1).bit_length() - 1), 8), 128)

    def is_at_hand(self, arrays) -> bool:
        return lent.at_hand(arrays)

    def astype(self, x, dtype):
        return x.astype(self.native_dtype(dtype))

    def from_python(self, data, dtype, device):
        """Python numbers, lists or arrays as an mx.array, always a copy. float64 arrays raise UnsupportedDtype."""
        return self.from_numpy(read_values(data, dtype), dtype, device)

    def from_numpy(self, array, dtype, device):
        wanted = dtype or dt.dtype(array.dtype)
        native = self.native_dtype(wanted)
        self._check(device)
        return from_numpy(array).astype(native)

    def to_numpy(self, x):
        return to_numpy(x)

    def to_device(self, x, device: str):
        self._check(device)
        return x

    def to_dlpack(self, x, stream=None, max_version=None, dl_device=None, copy=None):
        if copy or dl_device not in (None, x.__dlpack_device__()):
            return to_numpy(x).__dlpack__(max_version=max_version, dl_device=dl_device)
        return x.__dlpack__()

    def share(self, x, device):
        try:
            found = mx.from_dlpack(x, copy=False)
        except (BufferError, RuntimeError, TypeError, ValueError):
            return None
        return found if found.dtype in self._ember_dtype else None

    def full(self, shape, value, dtype, device):
        self._check(device)
        native = self.native_dtype(dtype)
        return mx.full(shape, bool(value) if native is mx.bool_ else value, native)      # 0 would make int32 of bool

    def arange(self, start, stop, step, dtype, device):
        self._check(device)
        return mx.arange(start, stop, step, self.native_dtype(dtype))

    def _check(self, device: str | None):
        if device not in (None, self.default_device):
            raise UnsupportedDevice(f"mlx: runs on {self.default_device!r} here, got device {device!r}; memory is shared, "
                                    "so mx.set_default_device chooses for all arrays")


backend = MlxBackend()
