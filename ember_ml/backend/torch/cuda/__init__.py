"""torch on NVIDIA GPUs: CuPy launches Ember's CUDA kernels on torch's tensors, memory and stream; nothing is copied."""

from __future__ import annotations

from functools import cache, lru_cache, partial

import torch

from ember_ml.errors import BackendMissing
from ember_ml.tensor.common import dtypes as dt


@cache
def launchers() -> dict:
    """Launchers of torch tensors on CUDA by kernel name; empty where CuPy is missing, see `missing`."""
    return {} if missing() else {name: partial(_launch, kernel) for name, kernel in _kernels().KERNELS.items()}


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
    from ember_ml.backend.cupy import arrays, kernels    # finds a GPU, so only once one is asked for
    arrays.use(torch.Tensor, TorchArrays())
    return kernels


def _launch(kernel, *args, **static):
    with _place(args[0].device):
        return kernel(*args, **static)


def _place(device: torch.device):
    """A context: CuPy on the device, and on torch's current stream there."""
    return _made_place(device.index, torch.cuda.current_stream(device).cuda_stream)


class _Place:
    """Enters a device and one of its streams."""

    def __init__(self, device: int, stream: int):
        import cupy
        self.device, self.stream = cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device)

    def __enter__(self):
        self.device.__enter__()
        self.stream.__enter__()

    def __exit__(self, *error):
        self.stream.__exit__(*error)
        self.device.__exit__(*error)


_made_place = lru_cache(maxsize=64)(_Place)


class TorchArrays:
    """torch.Tensors for CuPy's launchers, see `ember_ml.backend.cupy.arrays`. Memory is torch's."""

    dtypes = {d.name: getattr(torch, d.name) for d in dt.ALL}
    names = {native: name for name, native in dtypes.items()}

    def name(self, x) -> str:
        return self.names[x.dtype]

    def device(self, x) -> int:
        return x.device.index

    def empty(self, shape, dtype: str, like):
        return torch.empty(shape, dtype=self.dtypes[dtype], device=like.device)

    def full(self, shape, value, dtype: str, like):
        return torch.full(shape, value, dtype=self.dtypes[dtype], device=like.device)

    def floats(self, values: list[float], like):
        return torch.tensor(values, dtype=torch.float32, device=like.device)

    def cast(self, x, dtype: str):
        return x.to(self.dtypes[dtype])

    def copy(self, x):
        return x.clone()

    def strides(self, x) -> tuple[int, ...]:
        return x.stride()

    def aligned(self, x):
        x = x.contiguous()
        return x.clone() if x.data_ptr() % 16 else x

    def argument(self, x) -> int:
        """The address."""
        return x.data_ptr()
