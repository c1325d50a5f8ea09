"""The real transforms of the MKL that torch is built with, through its C interface (DFTI): planned once, and in place.

torch.fft plans anew at each call, which takes as long as the transform of ten rows, and writes to new memory: blocks of rows that fit
a cache would mostly plan, and larger ones leave the cache. The threads are OpenMP's, as in all of torch: threads
of ours would fight for the cores with those, which wait for their next work in a busy loop.

Source: Intel oneMKL Developer Reference for C, Fourier Transform Functions. Many threads may use one committed descriptor.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import lru_cache
from pathlib import Path

import torch

#: from mkl_dfti.h: the real domain, names of settings, and how half a spectrum is stored
_REAL = 33
_TRANSFORMS, _EVEN_STORAGE, _INPUT_DISTANCE, _OUTPUT_DISTANCE, _THREADS = 7, 10, 14, 15, 27
_AS_COMPLEX = 39


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """torch's own library, which is loaded already. Raises OSError or AttributeError where MKL's functions are not in it."""
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
    for name in ("DftiCreateDescriptor_s_1d", "DftiCreateDescriptor_d_1d", "DftiSetValue", "DftiCommitDescriptor",
                 "DftiComputeForward", "DftiComputeBackward", "DftiFreeDescriptor"):
        getattr(library, name).restype = ctypes.c_long
    library.DftiErrorMessage.restype = ctypes.c_char_p
    return library


def _call(name: str, *args):
    status = getattr(_library(), name)(*args)
    if status:
        raise RuntimeError(f"{name}: {_library().DftiErrorMessage(ctypes.c_long(status)).decode()}")


class _Plan:
    """MKL's descriptor for rows of `size` real numbers, one way: their spectra lie `stride` complex numbers apart."""

    def __init__(self, back: bool, size: int, rows: int, stride: int, dtype: torch.dtype, threads: int):
        self.handle, self._free = ctypes.c_void_p(), _library().DftiFreeDescriptor
        create = "DftiCreateDescriptor_s_1d" if dtype == torch.float32 else "DftiCreateDescriptor_d_1d"
        _call(create, ctypes.byref(self.handle), ctypes.c_int(_REAL), ctypes.c_long(size))
        apart = (stride, 2 * stride) if back else (2 * stride, stride)
        for name, value in ((_TRANSFORMS, rows), (_EVEN_STORAGE, _AS_COMPLEX), (_INPUT_DISTANCE, apart[0]),
                            (_OUTPUT_DISTANCE, apart[1]), (_THREADS, threads)):
            _call("DftiSetValue", self.handle, ctypes.c_int(name), ctypes.c_long(value))
        _call("DftiCommitDescriptor", self.handle)

    def __del__(self):
        self._free(ctypes.byref(self.handle))


_plan = lru_cache(maxsize=32)(_Plan)


class InPlace:
    """Memory for the spectra of up to `rows` rows of `size` real numbers; not scaled, either way."""

    def __init__(self, rows: int, size: int, dtype: torch.dtype):
        line = 64 // (2 * dtype.itemsize)                  # each row on a boundary of 64 bytes, as vector units like it
        self.size, self.stride = size, -(-(size // 2 + 1) // line) * line
        self._real = torch.empty(rows, 2 * self.stride, dtype=dtype)
        self._complex = torch.view_as_complex(self._real.view(rows, self.stride, 2))[:, :size // 2 + 1]

    def forward(self, x):
        """The spectra (B, C, size / 2 + 1) of rows (B, C, L <= size), in the memory here until the next call."""
        rows = x.shape[0] * x.shape[1]
        real = self._real[:rows].view(*x.shape[:2], -1)
        real[..., :x.shape[2]].copy_(x)
        real[..., x.shape[2]:self.size].zero_()
        self._run("DftiComputeForward", rows)
        return self.spectra(*x.shape[:2])

    def spectra(self, batch: int, channels: int):
        """The memory, as the spectra of so many rows."""
        return self._complex[:batch * channels].view(batch, channels, -1)

    def back(self, out):
        """The rows that the memory's spectra belong to, as far as `out` (B, C, L <= size) goes; they are overwritten."""
        rows = out.shape[0] * out.shape[1]
        self._run("DftiComputeBackward", rows)
        out.copy_(self._real[:rows].view(*out.shape[:2], -1)[..., :out.shape[2]])

    def _run(self, name, rows):
        plan = _plan(name == "DftiComputeBackward", self.size, rows, self.stride, self._real.dtype, torch.get_num_threads())
        _call(name, plan.handle, ctypes.c_void_p(self._real.data_ptr()))


@lru_cache(maxsize=1)
def works() -> bool:
    """Whether MKL can be called here, and transforms some rows as torch.fft does. Not on other processors and systems."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not torch.backends.mkl.is_available():
        return False                                       # the C types above are those of this system
    try:
        for dtype, allowed in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
            x, y, memory = torch.arange(30, dtype=dtype).view(2, 3, 5).cos(), torch.empty(2, 3, 5, dtype=dtype), InPlace(6, 12, dtype)
            off = (memory.forward(x) - torch.fft.rfft(x, 12)).abs().max()
            memory.back(y)
            if not max(off, (y / 12 - x).abs().max()) < allowed:
                return False
    except (OSError, AttributeError, RuntimeError):
        return False
    return True
