"""What the launchers ask of an array library: CuPy's arrays here, torch's in `ember_ml.backend.torch.cuda`.

So CuPy launches kernels on torch's tensors by their addresses, without a cupy.ndarray around each: a small kernel takes a GPU a few
microseconds, and what Python does for its launch must not take many times that.
"""

from __future__ import annotations

import cupy

#: CUDA's names of the dtypes that kernels take
C_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}


class CupyArrays:
    """cupy.ndarrays. dtypes are names."""

    def name(self, x) -> str:
        return x.dtype.name

    def device(self, x) -> int:
        return x.device.id

    def empty(self, shape, dtype: str, like):
        return cupy.empty(shape, dtype)

    def full(self, shape, value, dtype: str, like):
        return cupy.full(shape, value, dtype)

    def floats(self, values: list[float], like):
        """There for every stream, since launchers keep it: CuPy copies in the order of the current one alone."""
        made = cupy.array(values, cupy.float32)
        cupy.cuda.get_current_stream().synchronize()
        return made

    def cast(self, x, dtype: str):
        return x.astype(dtype, copy=False)

    def copy(self, x):
        return x.copy()

    def strides(self, x) -> tuple[int, ...] | None:
        """In elements; None where they are no whole numbers, or negative."""
        if any(s % x.itemsize or s < 0 for s in x.strides):
            return None
        return tuple(s // x.itemsize for s in x.strides)

    def aligned(self, x):
        """Contiguous, from a multiple of 16 bytes on, which is what some kernels move at once."""
        x = cupy.ascontiguousarray(x)
        return x.copy() if x.data.ptr % 16 else x

    def argument(self, x):
        """x as CuPy hands it to a kernel."""
        return x


_libraries = {cupy.ndarray: CupyArrays()}


def use(kind: type, library) -> None:
    """Has the launchers take arrays of another type, too."""
    _libraries[kind] = library


def library_of(x):
    """The library of an array that a launcher was given."""
    found = _libraries.get(type(x))
    return found if found is not None else next(library for kind, library in _libraries.items() if isinstance(x, kind))
