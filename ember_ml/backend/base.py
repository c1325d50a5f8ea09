"""What all engines share: the lookup of dtypes, and the two casts that NumPy-like promotion needs."""

from __future__ import annotations

import os
from pathlib import Path

from ember_ml.errors import UnsupportedDtype
from ember_ml.tensor.common import dtypes as dt
from ember_ml.tensor.common.dtypes import DType


class BackendBase:
    """Base of the engines: `name`, `table` (op name -> native function), `runtime`, and dtypes both ways.

    Args:
        name: the engine's name, as in `em.using(name)`.
        dtypes: Ember dtype -> the engine's own. What is missing here the engine cannot hold.
        table: op name -> function of native arrays.
        runtime: see `ember_ml.tensor.interfaces.backend.Runtime`.
    """

    default_device = "cpu"
    #: whether ops remember what they resolved to here; not for engines that are made for one use
    remembered = True
    #: which of the twins it launches: "metal", "cuda", or None
    language: str | None = None

    def __init__(self, name: str, dtypes: dict[DType, object], table: dict, runtime):
        self.name, self.dtypes, self.table, self.runtime = name, dtypes, table, runtime
        self._ember_dtype = {native: ember for ember, native in dtypes.items()}
        self.inexact = frozenset(native for ember, native in dtypes.items() if ember.is_inexact)

    def __repr__(self) -> str:
        return f"<Ember backend {self.name}>"

    def __reduce__(self):
        from ember_ml.backend import get  # a copied or sent tensor finds the one engine object again
        return (get, (self.name,))

    def dtype_of(self, x) -> DType:
        """The Ember dtype of a native array."""
        try:
            return self._ember_dtype[x.dtype]
        except KeyError:
            raise UnsupportedDtype(f"{self.name}: arrays of dtype {x.dtype} are not tensors; expected one of "
                                   f"{', '.join(d.name for d in self.dtypes)}") from None

    def holds(self, dtype, device: str) -> bool:
        """Whether arrays of the dtype can be on that device of this engine."""
        return dt.dtype(dtype) in self.dtypes

    def native_dtype(self, dtype):
        """The engine's own dtype for an Ember dtype (or its name). Raises UnsupportedDtype with what to use."""
        dtype = dt.dtype(dtype)
        try:
            return self.dtypes[dtype]
        except KeyError:
            near = {"float64": "float32", "complex128": "complex64"}.get(dtype.name)
            hint = f"; use {near} here, or the numpy or torch engine" if near else ""
            raise UnsupportedDtype(f"{self.name}: has no {dtype}{hint}") from None

    def promote_pair(self, a, b):
        """Both native arrays, cast to their common dtype."""
        common = dt.promote(self.dtype_of(a), self.dtype_of(b))
        return self.astype(a, common), self.astype(b, common)

    def weak_scalar(self, a, scalar):
        """A native array and a Python scalar, made ready for an op: the array may be cast up, the scalar never widens.

        Raises OverflowError for an integer that the array's dtype cannot hold.
        """
        have = self.dtype_of(a)
        want = dt.weak_result(have, scalar)
        if want is not have:
            a = self.astype(a, want)
        if want.is_integer:
            low, high = (0, 2 ** want.bits - 1) if want.kind == "uint" else (-2 ** (want.bits - 1), 2 ** (want.bits - 1) - 1)
            if not low <= scalar <= high:
                raise OverflowError(f"{scalar} does not fit {want} ({low} to {high}); cast the tensor with .astype(...)")
        return a, self.scalar(scalar, want)

    def scalar(self, value, dtype: DType):
        """A Python scalar in the form in which the engine's functions treat it as `dtype`."""
        return value

    #: whether a bool tensor may be an index; where not, its true places are found first
    masks = True
    #: dtypes of the array API that the engine holds but hardly computes with: its namespace does not count them among its own
    undeclared: frozenset[DType] = frozenset()
    #: ops of the table that go through NumPy on the CPU, since the engine has nothing for them
    host: frozenset[str] = frozenset()

    def from_dlpack(self, x, device: str, copy: bool | None):
        """An array of another library: its memory where this engine can use it, else a copy through NumPy.

        Raises BufferError for copy=False where memory cannot be shared.
        """
        if not hasattr(x, "__dlpack__"):
            raise TypeError(f"from_dlpack: expected an array that speaks DLPack, got {type(x).__name__}; use asarray")
        own = getattr(x, "backend", None) is self and self.device_of(x.data) == device
        shared = None if copy else x.data if own else self.share(x, device)
        if shared is not None:
            return shared
        if copy is False:
            raise BufferError(f"from_dlpack: {self.name} on {device} cannot use the memory of a {type(x).__name__} on DLPack device "
                              f"{tuple(map(int, x.__dlpack_device__()))}; pass copy=None or True")
        from ember_ml.backend.numpy import read_dlpack
        return self.from_numpy(read_dlpack(x), None, device)

    def dlpack_device(self, x) -> tuple:
        """(kind, number) of the device that the array lies on, in DLPack's terms."""
        return x.__dlpack_device__()

    def share(self, x, device: str):
        """A native array in the memory of another library's array, or None where this engine cannot use it."""
        return None

    def reserve(self, size: int):
        """Told before as many Python numbers are made into an array. An engine with limits raises ShapeError."""

    def devices(self) -> list[str]:
        """Every device of this engine that is there."""
        return [self.default_device]

    def memory(self, device: str) -> int:
        """Bytes that arrays on the device may take in all: a GPU's memory, what Metal recommends, else the machine's."""
        return machine_memory()

    def launchers(self, device: str) -> dict:
        """Functions that launch Ember's kernels on that device, by the name of their KernelSpec; empty if none can run."""
        return {}

    def grouped_block(self, rows: int, groups: int) -> int:
        """Rows that the engine's grouped matrix product takes at a time: each group's rows begin at a multiple of it."""
        return 1

    def is_at_hand(self, arrays) -> bool:
        """Whether functions on the CPU may read these arrays, which share a device, now."""
        return self.device_of(arrays[0]) == "cpu"

    def no_launchers(self, device: str) -> str:
        """Why `launchers` is empty."""
        return "no Metal or CUDA device"


def machine_memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or a container's share of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = Path("/sys/fs/cgroup/memory.max")
    found = share.read_text().strip() if share.exists() else "max"
    return min(physical, int(found)) if found.isdigit() else physical
