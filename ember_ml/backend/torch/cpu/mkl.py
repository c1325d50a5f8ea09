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
import threading
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
    if status := getattr(_library(), name)(*args):
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
    """Memory for the spectra of up to `rows` rows of `size` real numbers; not scaled, either way.

    A block of it has a shape (B, H, d1, d2, L): B H d1 d2 rows, of which L <= size numbers are looked at.
    """

    def __init__(self, rows: int, size: int, dtype: torch.dtype):
        line = 64 // (2 * dtype.itemsize)                  # each row on a boundary of 64 bytes, as vector units like it
        self.size, self.stride, self.threads = size, -(-(size // 2 + 1) // line) * line, torch.get_num_threads()
        with torch.inference_mode(False):                  # memory that is kept serves calls outside of that mode, too
            self._real = torch.empty(rows, 2 * self.stride, dtype=dtype, device="cpu")
        self.bytes = self._real.nbytes
        self._at, self._blocks = ctypes.c_void_p(self._real.data_ptr()), {}

    def _block(self, shape: tuple[int, ...]):
        """(real rows, what is beyond them, spectra, MKL's handles there and back): looking these up costs less than making them."""
        found = self._blocks.get(shape)
        if found is None:
            rows = shape[0] * shape[1] * shape[2] * shape[3]
            with torch.inference_mode(False):
                real = self._real[:rows].view(*shape[:4], -1)
                spectra = torch.view_as_complex(self._real[:rows].view(*shape[:2], -1, self.stride, 2))[..., :self.size // 2 + 1]
                plans = [_plan(back, self.size, rows, self.stride, self._real.dtype, self.threads) for back in (False, True)]
                found = real[..., :shape[4]], real[..., shape[4]:self.size], spectra, *plans
            if len(self._blocks) >= 8:
                self._blocks.clear()
            self._blocks[shape] = found
        return found

    def rows(self, shape):
        """The memory as real rows of this shape, to be written."""
        return self._block(shape)[0]

    def spectra(self, shape):
        """The memory as the spectra (B, H, d1 d2, size / 2 + 1) of such rows."""
        return self._block(shape)[2]

    def forward(self, shape):
        """The spectra of the rows in the memory, in their place."""
        _, beyond, spectra, plan, _ = self._block(shape)
        beyond.zero_()
        _call("DftiComputeForward", plan.handle, self._at)
        return spectra

    def back(self, shape):
        """The rows that the memory's spectra belong to, in their place."""
        rows, *_, plan = self._block(shape)
        _call("DftiComputeBackward", plan.handle, self._at)
        return rows


_kept = threading.local()

#: bytes of a memory above which it is not kept
KEPT = 1 << 22


def memory(name: str, rows: int, size: int, dtype: torch.dtype) -> InPlace:
    """`InPlace`, the one of the last call in this thread where that was for the same: memory that a cache holds still, and views of it."""
    key = rows, size, dtype, torch.get_num_threads()
    last = getattr(_kept, name, None)
    if last is not None and last[0] == key:
        return last[1]
    made = InPlace(rows, size, dtype)
    setattr(_kept, name, (key, made) if made.bytes <= KEPT else None)
    return made


@lru_cache(maxsize=1)
def works() -> bool:
    """Whether MKL can be called here, and transforms some rows as torch.fft does. Not on other processors and systems."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not torch.backends.mkl.is_available():
        return False                                       # the C types above are those of this system
    try:
        for dtype, allowed in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
            x, shape, memory = torch.arange(30, dtype=dtype).view(2, 3, 1, 1, 5).cos(), (2, 3, 1, 1, 5), InPlace(6, 12, dtype)
            memory.rows(shape).copy_(x)
            off = (memory.forward(shape) - torch.fft.rfft(x[:, :, 0], 12)).abs().max()
            if not max(off, (memory.back(shape) / 12 - x).abs().max()) < allowed:
                return False
    except (OSError, AttributeError, RuntimeError):
        return False
    return True
