"""The torch engine: CPU, NVIDIA GPUs, Apple's mps; native gradients, torch.compile."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

from ember_ml.backend.base import BackendBase
from ember_ml.backend.numpy import read_values
from ember_ml.backend.torch import (base, convolve, cuda, elementwise, fftconv, index, linalg, moe, moe_mlp, optimizer, random, reduce, rnn,
                                    scan, state_dict)
from ember_ml.backend.torch.runtime import TorchRuntime
from ember_ml.errors import UnsupportedDevice, UnsupportedDtype
from ember_ml.tensor.common import dtypes as dt


#: what Apple's GPUs cannot compute
_MPS_LACKS = (dt.float64, dt.complex128)


class TorchBackend(BackendBase):
    """torch as an engine. Devices: cpu, cuda:0 and so on, mps.

    float32 means float32: torch lets cuDNN round the operands of convolutions and recurrent networks to ten bits (TF32), which is
    switched off here when the engine loads; `torch.backends.cudnn.allow_tf32 = True` afterwards has it back.
    """

    array_types = (torch.Tensor,)
    language = "cuda"
    undeclared = frozenset((dt.uint16, dt.uint32, dt.uint64))   # torch adds and compares none of them

    def __init__(self):
        dtypes = {d: getattr(torch, d.name) for d in dt.ALL}
        families = (base, elementwise, reduce, index, linalg, fftconv, convolve, moe, moe_mlp, scan, rnn, random, optimizer)
        table = {name: fn for family in families for name, fn in family.TABLE.items()}
        super().__init__("torch", dtypes, table, TorchRuntime())
        torch.backends.cudnn.allow_tf32 = False
        self.weak_floats = self.inexact
        self.table["astype"] = lambda x, dtype: self.astype(x, dt.dtype(dtype))

    @property
    def default_device(self) -> str:
        """cuda where there is one, else cpu. mps is used when named."""
        return "cuda:0" if torch.cuda.is_available() else "cpu"

    def devices(self) -> list[str]:
        """cpu, every NVIDIA GPU, and mps where it is."""
        return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
                *(["mps"] if torch.backends.mps.is_available() else [])]

    def memory(self, device: str) -> int:
        return torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else super().memory(device)

    def launchers(self, device: str) -> dict:
        return cuda.launchers() if device.startswith("cuda") else {}

    def no_launchers(self, device: str) -> str:
        return cuda.missing() if device.startswith("cuda") else "torch has Ember's kernels on NVIDIA GPUs only"

    def device_of(self, x) -> str:
        return str(x.device)

    def holds(self, dtype, device: str) -> bool:
        return super().holds(dtype, device) and not (device.startswith("mps") and dt.dtype(dtype) in _MPS_LACKS)

    def astype(self, x, dtype):
        if x.is_mps:
            self._check_mps(dtype)
        return x.to(self.native_dtype(dtype))

    def from_python(self, data, dtype, device):
        """Python numbers, lists or arrays as a torch tensor, always a copy."""
        return self.from_numpy(read_values(data, dtype), dtype, device)

    def from_numpy(self, array, dtype, device):
        wanted = dtype or dt.dtype(array.dtype)
        array = np.array(array, order="C")
        if array.dtype.name == "bfloat16":               # torch reads no ml_dtypes: the same bits, as uint16
            native = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        else:
            native = torch.from_numpy(array)
        return native.to(self._device(device, wanted), self.dtypes[wanted])

    def to_numpy(self, x):
        x = x.detach().cpu().resolve_conj().resolve_neg()
        if x.dtype is torch.bfloat16:
            return x.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
        return x.numpy().copy()

    def to_device(self, x, device: str):
        return x.to(self._device(device, self.dtype_of(x)))

    def to_dlpack(self, x, **kw):
        return x.detach().__dlpack__(**kw)

    def share(self, x, device):
        try:
            found = torch.from_dlpack(x)
        except (BufferError, RuntimeError, TypeError):
            return None
        return found if found.device == self._device(device) else None

    def full(self, shape, value, dtype, device):
        return torch.full(shape, value, dtype=self.native_dtype(dtype), device=self._device(device, dtype))

    def arange(self, start, stop, step, dtype, device):
        if (stop - start) * step <= 0:                       # torch refuses what is empty by its sign
            return torch.empty(0, dtype=self.native_dtype(dtype), device=self._device(device, dtype))
        return torch.arange(start, stop, step, dtype=self.native_dtype(dtype), device=self._device(device, dtype))

    def read_state_dict(self, path) -> dict[str, torch.Tensor]:
        """Tensors by name of one of torch's checkpoint files: see `ember_ml.backend.torch.state_dict`."""
        return state_dict.read_state_dict(path)

    def _check_mps(self, dtype):
        if dt.dtype(dtype) in _MPS_LACKS:
            near = "float32" if dt.dtype(dtype) is dt.float64 else "complex64"
            raise UnsupportedDtype(f"torch: Apple GPUs have no {dt.dtype(dtype)}; use {near} there, or the device 'torch:cpu'")

    def _device(self, device: str | None, dtype=None) -> torch.device:
        """The torch device, where it is there and can hold the dtype."""
        try:
            found = torch.device(device or self.default_device)
        except RuntimeError:
            raise UnsupportedDevice(f"torch: has no device {device!r}; expected cpu, cuda:0, ... or mps") from None
        if found.type == "cuda" and not torch.cuda.is_available():
            raise UnsupportedDevice(f"torch: device {device!r} was asked for, but torch finds no NVIDIA GPU; use 'torch:cpu'")
        if found.type == "mps" and not torch.backends.mps.is_available():
            raise UnsupportedDevice(f"torch: device {device!r} was asked for, but torch finds no Apple GPU; use 'torch:cpu'")
        if found.type == "mps" and dtype is not None:
            self._check_mps(dtype)
        return found


backend = TorchBackend()
