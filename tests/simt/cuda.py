"""Stands in for cupy: NumPy behind CuPy's names, and `RawModule`, whose kernels clang compiles and the executor runs.

cuda/*.h bring what NVIDIA's compiler brings. Checked beyond what CuPy checks: number and types of a kernel's arguments.
"""

import ctypes
import inspect
import re
import types
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import takewhile

import ml_dtypes
import numpy as np

from ember_ml.backend.numpy import special
from tests.simt.build import HERE, KERNEL, shared_library
from tests.simt.executor import Buffer, KernelFault, Module

_FLAGS = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fvisibility=default",
          "-I", str(HERE / "cuda"), "-I", str(HERE), *KERNEL)

#: bytes of shared memory that a block may have, by itself and when its kernel asks for more (compute capability 9.0)
SHARED_MEMORY, MOST_SHARED_MEMORY = 48 << 10, 227 << 10


class ndarray(np.ndarray):
    """A NumPy array on cuda:0 that knows whether it came from `empty` and no kernel has written it."""

    fresh = False
    device = types.SimpleNamespace(id=0)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return _on_device(array)

    def __getitem__(self, index):
        return _on_device(super().__getitem__(index))


def _on_device(x):
    """CuPy has no scalars: what NumPy makes one is an array without axes."""
    if isinstance(x, tuple):
        return tuple(map(_on_device, x))
    return np.asarray(x).view(ndarray) if isinstance(x, np.generic | np.ndarray) and not isinstance(x, ndarray) else x


_signature = cache(inspect.signature)

#: what atomicAdd takes
_ATOMIC = "int32 float16 float32 float64 complex64 complex128 uint32 uint64".split()


class Function:
    """A function of CuPy's, computed by NumPy's. Refused is what CuPy refuses: its own parameters, no NumPy arrays."""

    def __init__(self, real, numpy):
        self.real, self.numpy = real, numpy

    def __call__(self, *args, **kw):
        flat = [x for a in args for x in (a if isinstance(a, list | tuple) else (a,))]
        if any(type(x) is np.ndarray for x in flat) and self.real.__name__ not in ("array", "asarray", "from_dlpack"):
            raise TypeError(f"cupy.{self.real.__name__}: Unsupported type <class 'numpy.ndarray'>")
        if self.real.__name__ == "at" and args[0].dtype.name not in _ATOMIC:
            raise TypeError(f"cupy.add.at: only supports {', '.join(_ATOMIC)} as data type, got {args[0].dtype}")
        if isinstance(self.real, types.FunctionType):
            _signature(self.real).bind(*args, **kw)
        return _on_device(self.numpy(*args, **kw))

    def __getattr__(self, name):
        return Function(getattr(self.real, name), getattr(self.numpy, name))


class Namespace(types.ModuleType):
    """A module of CuPy's: its names, with NumPy's functions behind them."""

    def __init__(self, real, numpy):
        super().__init__(real.__name__)
        self.real, self.numpy = real, numpy

    def __getattr__(self, name):
        real = getattr(self.real, name)
        if isinstance(real, types.ModuleType):
            return Namespace(real, getattr(self.numpy, name))
        return Function(real, getattr(self.numpy, name)) if callable(real) and not isinstance(real, type) else real


class RawModule:
    """cupy.RawModule, for kernels that are named in `name_expressions`."""

    def __init__(self, *, code, options=(), name_expressions):
        self.code = re.sub(r"extern __shared__ (?:__align__\(\d+\) )?([\w: ]+?) (\w+)\[\];",
                           r"\1* const \2 = (\1*)simt_dynamic_shared();", code)
        self.kernels = {name: RawKernel(self.code, name) for name in name_expressions}

    def get_function(self, name):
        return self.kernels[name]


class RawKernel:
    """One kernel of a module, with the attributes that Ember's launchers use."""

    def __init__(self, code, name):
        self.code, self.name, self.module, self.max_dynamic_shared_size_bytes = code, name, None, SHARED_MEMORY

    def __call__(self, grid, block, arguments, *, shared_mem=0):
        if self.module is None:
            text = f'#include "simt_cuda.h"\n#line 1 "kernel.cu"\n{self.code}\nSIMT_ENTRY({self.name})\n'
            self.module = Module(shared_library("cuda", [text], *_FLAGS))
        module = self.module
        if module.shared_bytes > SHARED_MEMORY or shared_mem > self.max_dynamic_shared_size_bytes:
            raise KernelFault(f"{self.name}: {module.shared_bytes} bytes of shared memory and {shared_mem} dynamic ones; "
                              f"allowed are {SHARED_MEMORY} and {self.max_dynamic_shared_size_bytes}")
        slots, outputs = _slots(module, self.name, arguments)
        blocks, threads = ((*size, *(1,) * (3 - len(size))) for size in (grid, block))
        if blocks[0] >= 2 ** 31 or max(blocks[1:]) > 65535 or 0 in blocks or 0 in threads:
            raise KernelFault(f"{self.name}: a grid of {blocks} blocks of {threads} threads")
        module.launch("simt_entry", slots, [a * b for a, b in zip(blocks, threads)], threads, MOST_SHARED_MEMORY,
                      shared_mem, self.name)
        for array in outputs:
            array.fresh = False


def _slots(module, name, arguments) -> tuple[list, list]:
    """The executor's arguments, and the arrays that came from `empty` and are written now."""
    module.library.simt_parameters.restype = ctypes.POINTER(ctypes.c_char_p)
    expected = [p.decode() for p in takewhile(bool, module.library.simt_parameters())]
    if len(arguments) != len(expected):
        raise KernelFault(f"{name}: takes {len(expected)} arguments, got {len(arguments)}")
    slots, outputs = [], []
    for i, (argument, want) in enumerate(zip(arguments, expected)):
        array = np.asarray(argument)                           # CuPy too takes Python's int for int64
        pointer = isinstance(argument, np.ndarray)
        have = f"{array.dtype}*" if pointer else str(array.dtype)
        if want.endswith("*") and not pointer and array.dtype.itemsize == 8 and argument == 0:
            slots.append(Buffer(f"argument {i}, null,", np.empty(0, np.uint8), False, True))
        elif have != want.removeprefix("const "):
            raise KernelFault(f"{name}: argument {i} is {have}, the kernel takes {want}")
        elif not pointer:
            slots.append(array)
        else:
            fresh = isinstance(argument, ndarray) and argument.fresh
            slots.append(Buffer(f"argument {i}", array, not want.startswith("const "), not fresh))
            outputs += [argument] if fresh and slots[-1].writable else []
    return slots, outputs


def _empty(shape, dtype):
    """An array that no kernel has written, in memory from the allocator that `cuda.using_allocator` has set."""
    dtype, count = np.dtype(dtype), int(np.prod(shape))
    if _allocator is None or not count:
        array = np.zeros(shape, dtype).view(ndarray)
    else:
        memory = _allocator(count * dtype.itemsize).mem
        room = (ctypes.c_char * memory.size).from_address(memory.ptr)
        room.owner = memory.owner
        array = np.frombuffer(room, dtype, count).reshape(shape).view(ndarray)
    array.fresh = True
    return array


_allocator = None


@contextmanager
def _using_allocator(allocator):
    global _allocator
    before, _allocator = _allocator, allocator
    try:
        yield
    finally:
        _allocator = before


def stand_in() -> dict[str, types.ModuleType]:
    """Modules for sys.modules: cupy, and of cupyx what Ember's CuPy engine imports; the CPU poses as cuda:0."""
    import cupy as real                                        # it needs a GPU only once it computes
    cupy, cupyx, scipy = Namespace(real, np), types.ModuleType("cupyx"), types.ModuleType("cupyx.scipy")
    cupy.__spec__ = real.__spec__                              # it counts as installed
    cupy.RawModule, cupy.ndarray, cupy.empty, cupy.asnumpy = RawModule, ndarray, _empty, np.array
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(total_bytes=lambda: 0, free_all_blocks=lambda: None)
    cupy.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=OSError, driverGetVersion=lambda: 0,
                                      getDeviceProperties=lambda number: {"name": b"executor on the CPU", "totalGlobalMem": 1 << 30}),
        Device=lambda number: nullcontext(), ExternalStream=lambda pointer, device: nullcontext(),
        get_current_stream=lambda: types.SimpleNamespace(synchronize=lambda: None), using_allocator=_using_allocator,
        UnownedMemory=lambda ptr, size, owner, device: types.SimpleNamespace(ptr=ptr, size=size, owner=owner),
        MemoryPointer=lambda mem, offset: types.SimpleNamespace(mem=mem))
    scipy.special = types.SimpleNamespace(erf=lambda x: _on_device(special.erf(x)), erfinv=lambda x: _on_device(special.erfinv(x)))
    return {"cupy": cupy, "cupyx": cupyx, "cupyx.scipy": scipy}
