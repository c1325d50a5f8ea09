"""torch on NVIDIA GPUs: CuPy launches Ember's CUDA kernels on torch's tensors, memory and stream; nothing is copied."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache, partial

import torch

from ember_ml.errors import BackendMissing


@cache
def launchers() -> dict:
    """Launchers of torch tensors on CUDA by kernel name; empty where CuPy is missing, see `missing`."""
    return {} if missing() else {name: partial(_launch, name) for name in _kernels().KERNELS}


@cache
def missing() -> str:
    """Why torch cannot launch kernels; empty if it can."""
    try:
        _kernels()
    except ImportError as error:
        how = "" if isinstance(error, BackendMissing) else '; pip install "ember-ml[cuda]"'
        return f"torch launches Ember's kernels through CuPy: {error}{how}"
    return ""


def _kernels():
    from ember_ml.backend.cupy import kernels            # finds a GPU, so only once one is asked for
    return kernels


def _launch(name: str, *args, **static):
    with _place(args[0].device):
        out = _kernels().KERNELS[name](*(None if a is None else _to_cupy(a) for a in args), **static)
        return tuple(map(_to_torch, out)) if isinstance(out, tuple) else _to_torch(out)


@contextmanager
def _place(device: torch.device):
    """CuPy on torch's current stream of the device; memory that it needs comes from torch's allocator."""
    import cupy

    def allocate(size: int):
        owner = torch.empty(size, dtype=torch.uint8, device=device)
        return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(owner.data_ptr(), size, owner, device.index), 0)

    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index)
    with cupy.cuda.Device(device.index), stream, cupy.cuda.using_allocator(allocate):
        yield


def _to_cupy(x: torch.Tensor):
    """The same memory. bfloat16 crosses as int16, because DLPack's name for it has no NumPy dtype."""
    import cupy
    x = x.detach()
    return cupy.from_dlpack(x.view(torch.int16)).view("bfloat16") if x.dtype is torch.bfloat16 else cupy.from_dlpack(x)


def _to_torch(x) -> torch.Tensor | None:
    if x is None:
        return None
    return torch.from_dlpack(x.view("int16")).view(torch.bfloat16) if str(x.dtype) == "bfloat16" else torch.from_dlpack(x)
