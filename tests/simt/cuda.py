"""Stands in for cupy: NumPy with `RawModule`, whose kernels clang compiles and the executor runs.

cuda/*.h bring what NVIDIA's compiler brings. Checked beyond what CuPy checks: number and types of a kernel's arguments.
"""

import ctypes
import types
from itertools import takewhile

import ml_dtypes
import numpy as np

from tests.simt.build import HERE, shared_library
from tests.simt.executor import Buffer, KernelFault, Module

_FLAGS = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fvisibility=default",
          "-I", str(HERE / "cuda"), "-I", str(HERE))

STATIC_SHARED_MEMORY = 49152


class ndarray(np.ndarray):
    """A NumPy array on cuda:0 that knows whether it came from `empty` and no kernel has written it."""

    fresh = False
    device = types.SimpleNamespace(id=0)


class RawModule:
    """cupy.RawModule, for kernels that are named in `name_expressions`."""

    def __init__(self, *, code, options=(), name_expressions):
        self.names, self.code, self.module = list(name_expressions), code, None

    def get_function(self, name):
        if self.module is None:
            entries = "".join(f"SIMT_ENTRY({i}, {n})\n" for i, n in enumerate(self.names))
            text = f'#include "simt_cuda.h"\n#line 1 "kernel.cu"\n{self.code}\n{entries}'
            self.module = Module(shared_library("cuda", text, *_FLAGS))
        number = self.names.index(name)

        def kernel(grid, block, arguments):
            _launch(self.module, number, name, grid, block, arguments)

        return kernel


def _launch(module, number, name, grid, block, arguments):
    parameters = getattr(module.library, f"simt_parameters_{number}")
    parameters.restype = ctypes.POINTER(ctypes.c_char_p)
    expected = [p.decode() for p in takewhile(bool, parameters())]
    if len(arguments) != len(expected):
        raise KernelFault(f"{name}: takes {len(expected)} arguments, got {len(arguments)}")
    slots, outputs = [], []
    for i, (argument, want) in enumerate(zip(arguments, expected)):
        pointer = isinstance(argument, np.ndarray)
        have = f"{argument.dtype}*" if pointer else str(argument.dtype)
        if have != want.removeprefix("const "):
            raise KernelFault(f"{name}: argument {i} is {have}, the kernel takes {want}")
        if not pointer:
            slots.append(np.array(argument))
            continue
        if not argument.flags.c_contiguous:
            raise KernelFault(f"{name}: argument {i} is not contiguous")
        initialised = not (isinstance(argument, ndarray) and argument.fresh)
        slots.append(Buffer(f"argument {i}", argument, not want.startswith("const "), initialised))
        outputs += [(argument, slots[-1])] if slots[-1].writable else []
    sizes = [(*size, *(1,) * (3 - len(size))) for size in (grid, block)]
    module.launch(f"simt_entry_{number}", slots, [a * b for a, b in zip(*sizes)], sizes[1], STATIC_SHARED_MEMORY)
    for array, buffer in outputs:
        array[...] = buffer.result
        if isinstance(array, ndarray):
            array.fresh = False


def _empty(shape, dtype):
    array = np.zeros(shape, dtype).view(ndarray)
    array.fresh = True
    return array


def _on_device(make):
    return lambda *args, **kw: make(*args, **kw).view(ndarray)


def stand_in() -> dict[str, types.ModuleType]:
    """Modules for sys.modules: cupy, and of cupyx what Ember's CuPy engine imports; the CPU poses as cuda:0."""
    cupy, cupyx, scipy = types.ModuleType("cupy"), types.ModuleType("cupyx"), types.ModuleType("cupyx.scipy")
    cupy.__getattr__ = lambda name: getattr(np, name)
    for name in ("array", "asarray", "zeros", "ones", "full", "arange", "broadcast_to"):
        setattr(cupy, name, _on_device(getattr(np, name)))
    cupy.RawModule, cupy.ndarray, cupy.empty, cupy.asnumpy = RawModule, ndarray, _empty, np.array
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(
        getDeviceCount=lambda: 1, CUDARuntimeError=OSError, driverGetVersion=lambda: 0,
        getDeviceProperties=lambda number: {"name": b"executor on the CPU"}))
    scipy.special = types.SimpleNamespace(erf=None, erfinv=None)
    return {"cupy": cupy, "cupyx": cupyx, "cupyx.scipy": scipy}
