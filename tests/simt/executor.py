"""Launches a compiled kernel on the executor and tells faults in the kernel's own terms."""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from tests.simt.build import HERE, shared_library

#: executor.c takes an address up to this far beyond a buffer for an overrun of that buffer
GAP = 1 << 20


class KernelFault(RuntimeError):
    """What a GPU would answer with a crash, a hang or garbage: the fault, file and line, the thread."""


class _Buffer(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64),
                ("writable", ctypes.c_uint32), ("initialised", ctypes.c_uint32)]


class _Launch(ctypes.Structure):
    _fields_ = [("entry", ctypes.c_void_p), ("arguments", ctypes.POINTER(ctypes.c_void_p)),
                ("argument_count", ctypes.c_uint64), ("shared", ctypes.c_void_p), ("shared_bytes", ctypes.c_uint64),
                ("buffers", ctypes.POINTER(_Buffer)), ("buffer_count", ctypes.c_uint32),
                ("grid", ctypes.c_uint32 * 3), ("group", ctypes.c_uint32 * 3),
                ("where", ctypes.c_uint32), ("message", ctypes.c_char * 400)]


@cache
def _executor() -> ctypes.CDLL:
    text = (HERE / "executor.c").read_text()
    path = shared_library("executor", text, "-x", "c", "-std=c17", "-Wall", "-Werror", "-I", str(HERE), checked=False)
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)     # kernels find their hooks in it


class Buffer:
    """One array of a launch.

    Args:
        name: its name in messages.
        array: its contents; for an output only dtype and shape count unless `initialised`.
        writable: whether the kernel may write it. initialised: whether it may be read before it is written.
    """

    def __init__(self, name: str, array: np.ndarray, writable: bool, initialised: bool):
        self.name, self.array = name, np.ascontiguousarray(array).reshape(array.shape)
        self.writable, self.initialised = writable, initialised
        self.result: np.ndarray | None = None


class Module:
    """A compiled kernel file."""

    def __init__(self, path: Path):
        _executor()
        self.library = ctypes.CDLL(str(path))
        low, high = (ctypes.c_uint64 * 2).in_dll(self.library, "simt_shared")
        self.shared, self.shared_bytes = low, max(high - low, 0)
        end = ctypes.addressof(ctypes.c_char.in_dll(self.library, "simt_files"))
        self.files = dict(part.split("=", 1) for part in ctypes.string_at(end).decode().split("|") if part)

    def launch(self, entry: str, arguments: list, grid, group, shared_limit: int) -> None:
        """Runs `entry` for `grid` threads in groups of `group`; each Buffer that is writable gets its `result`.

        Args:
            arguments: Buffers and 0-d NumPy arrays, in the kernel's order; `entry` receives their addresses.
            shared_limit: bytes of threadgroup memory that the machine has.

        Raises KernelFault.
        """
        if self.shared_bytes > shared_limit:
            raise KernelFault(f"{self.shared_bytes} bytes of threadgroup memory, the machine has {shared_limit}")
        buffers = [a for a in arguments if isinstance(a, Buffer)]
        room = [(b.array.nbytes + 4095) // 4096 * 4096 + GAP for b in buffers]
        arena = np.empty(GAP + sum(room), np.uint8)            # untouched pages cost nothing
        start = -arena.ctypes.data % 4096 + GAP // 2           # aligned as a GPU's buffers are
        places = {}
        for buffer, size in zip(buffers, room):
            place = arena[start:start + buffer.array.nbytes]
            place[:] = buffer.array.reshape(-1).view(np.uint8) if buffer.initialised else 0xA5
            places[id(buffer)], start = place, start + size
        addresses = [places[id(a)].ctypes.data if isinstance(a, Buffer) else a.ctypes.data for a in arguments]
        launch = _Launch(
            entry=ctypes.cast(getattr(self.library, entry), ctypes.c_void_p),
            arguments=(ctypes.c_void_p * len(addresses))(*addresses), argument_count=len(addresses),
            shared=self.shared, shared_bytes=self.shared_bytes,
            buffers=(_Buffer * len(buffers))(*(_Buffer(b.name.encode(), places[id(b)].ctypes.data, b.array.nbytes,
                                                       b.writable, b.initialised) for b in buffers)),
            buffer_count=len(buffers), grid=tuple(grid), group=tuple(group))
        if _executor().simt_launch(ctypes.byref(launch)):
            file, line = self.files.get(str(launch.where >> 20), ""), launch.where & 0xFFFFF
            raise KernelFault((f"{file}:{line}: " if launch.where else "") + launch.message.decode())
        for buffer in buffers:
            if buffer.writable:
                buffer.result = places[id(buffer)].copy().view(buffer.array.dtype).reshape(buffer.array.shape)
