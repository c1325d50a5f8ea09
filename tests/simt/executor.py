"""Launches a compiled kernel on the executor and tells faults in the kernel's own terms."""

import ctypes
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tests.simt.build import HERE, shared_library
from tests.simt.image import ALLOCATED, WRITABLE, position, sections

#: checker.c takes an address up to this far beyond a buffer for an overrun of that buffer
GAP = 1 << 20


class KernelFault(RuntimeError):
    """What a GPU would answer with a crash, a hang or garbage: the fault, file and line, the thread."""


@dataclass(frozen=True)
class Mode:
    """How kernels run now.

    Args:
        check: find faults; without, a kernel is several times as fast, and may crash the process.
        schedule: the order of threads, simdgroups and groups: 0 ascending, 1 descending, others pseudo-random.
        without: leave out what the text makes depend on `simt_left_out(without)`; 0: nothing.
    """

    check: bool = True
    schedule: int = 0
    without: int = 0


@dataclass(frozen=True)
class Launch:
    """What one checked launch moved.

    Args:
        loaded, stored: bytes that all its threads together loaded from device memory and stored to it.
        read, written: the same with each byte counted once, however many threads asked for it: what a cache cannot spare.
    """

    kernel: str
    loaded: int
    stored: int
    read: int
    written: int


_mode, _counts = Mode(), None


def mode() -> Mode:
    """The mode that `using` has set."""
    return _mode


@contextmanager
def using(check: bool = True, schedule: int = 0, without: int = 0):
    """Runs the kernels inside in this `Mode`."""
    global _mode
    before, _mode = _mode, Mode(check, schedule, without)
    try:
        yield
    finally:
        _mode = before


@contextmanager
def counted():
    """A list that gets a `Launch` for each launch inside."""
    global _counts
    before, _counts = _counts, []
    try:
        yield _counts
    finally:
        _counts = before


class _Buffer(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64),
                ("element", ctypes.c_uint32), ("writable", ctypes.c_uint32), ("initialised", ctypes.c_uint32),
                ("shared", ctypes.c_uint32)]


class _Launch(ctypes.Structure):
    _fields_ = [("entry", ctypes.c_void_p), ("arguments", ctypes.POINTER(ctypes.c_void_p)),
                ("argument_count", ctypes.c_uint64), ("constants", ctypes.c_uint64), ("constants_end", ctypes.c_uint64),
                ("dynamic_shared", ctypes.c_void_p), ("buffers", ctypes.POINTER(_Buffer)), ("buffer_count", ctypes.c_uint32),
                ("grid", ctypes.c_uint32 * 3), ("group", ctypes.c_uint32 * 3), ("check", ctypes.c_uint32), ("schedule", ctypes.c_uint32),
                ("without", ctypes.c_uint32), ("loaded", ctypes.c_uint64), ("stored", ctypes.c_uint64), ("read", ctypes.c_uint64), ("written", ctypes.c_uint64),
                ("where", ctypes.c_uint64), ("other", ctypes.c_uint64), ("message", ctypes.c_char * 400)]


@cache
def _executor() -> ctypes.CDLL:
    texts = [(HERE / name).read_text() for name in ("executor.c", "checker.c")]
    path = shared_library("executor", texts, "-x", "c", "-std=c17", "-Wall", "-Werror", "-O2", "-fPIC", "-fvisibility=hidden",
                          "-I", str(HERE))
    return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)     # kernels find their hooks in it


class Buffer:
    """One array of a launch; the kernel sees the memory that it spans, whatever its strides.

    Args:
        name: its name in messages.
        array: its contents; for an output only dtype and shape count unless `initialised`.
        writable: whether the kernel may write it. initialised: whether it may be read before it is written.
    """

    def __init__(self, name: str, array: np.ndarray, writable: bool, initialised: bool):
        self.name, self.array, self.writable, self.initialised = name, array, writable, initialised
        reach = [(n - 1) * s for n, s in zip(array.shape, array.strides)] if array.size else []
        self.start = -sum(r for r in reach if r < 0)           # bytes of the span that lie before the first element
        self.bytes = self.start + sum(r for r in reach if r > 0) + array.itemsize if array.size else 0
        self.address = array.__array_interface__["data"][0] - self.start

    def span(self) -> np.ndarray:
        """The bytes of the array's memory, from its lowest to its highest address."""
        return np.frombuffer((ctypes.c_uint8 * self.bytes).from_address(self.address), np.uint8)


class Module:
    """A compiled kernel file."""

    def __init__(self, path: Path):
        _executor()
        self.path, self.library = path, ctypes.CDLL(str(path))
        self.base = ctypes.c_uint64.from_address(self.library._handle).value      # the first field of glibc's link_map
        known = sections(path)
        zeroed, self.shared_bytes, *_ = known.get(".bss", (0, 0))                  # threadgroup arrays, and nothing else
        self.shared = self.base + zeroed
        self.constants_end = self.base + max(address + length for address, length, _, flags in known.values()
                                             if flags & ALLOCATED and not flags & WRITABLE)

    def launch(self, entry: str, arguments: list, grid, group, shared_limit: int, dynamic: int = 0, name: str = "") -> None:
        """Runs `entry` for `grid` threads in groups of `group`; Buffers that are writable are written back.

        Args:
            arguments: Buffers and 0-d NumPy arrays, in the kernel's order; `entry` receives their addresses.
            shared_limit: bytes of threadgroup memory that the machine has.
            dynamic: bytes of threadgroup memory beyond the kernel's own arrays.
            name: the kernel's name, for `counted`.

        Raises KernelFault.
        """
        if self.shared_bytes + dynamic > shared_limit:
            raise KernelFault(f"{self.shared_bytes + dynamic} bytes of threadgroup memory, the machine has {shared_limit}")
        buffers = [a for a in arguments if isinstance(a, Buffer)]
        room = [(size + 4095) // 4096 * 4096 + GAP for size in [*(b.bytes for b in buffers), dynamic]]
        arena = np.empty(GAP + sum(room), np.uint8)            # untouched pages cost nothing
        start = -arena.ctypes.data % 4096 + GAP // 2           # aligned as a GPU's buffers are
        places, described = {}, []
        for buffer, size in zip(buffers, room):
            first = start + buffer.address % 16                # a view may be less aligned than its array
            place = places[id(buffer)] = arena[first:first + buffer.bytes]
            place[:] = buffer.span() if buffer.initialised else 0xA5
            described.append(_Buffer(buffer.name.encode(), place.ctypes.data, buffer.bytes, buffer.array.itemsize,
                                     buffer.writable, buffer.initialised, False))
            start += size
        described += [_Buffer(b"threadgroup memory", where, size, 4, True, False, True)
                      for where, size in ((self.shared, self.shared_bytes), (arena.ctypes.data + start, dynamic)) if size]
        addresses = [places[id(a)].ctypes.data + a.start if isinstance(a, Buffer) else a.ctypes.data for a in arguments]
        launch = _Launch(
            entry=ctypes.cast(getattr(self.library, entry), ctypes.c_void_p),
            arguments=(ctypes.c_void_p * len(addresses))(*addresses), argument_count=len(addresses),
            constants=self.base, constants_end=self.constants_end, dynamic_shared=arena.ctypes.data + start,
            buffers=(_Buffer * len(described))(*described), buffer_count=len(described),
            grid=tuple(grid), group=tuple(group), check=_mode.check, schedule=_mode.schedule, without=_mode.without)
        if _executor().simt_launch(ctypes.byref(launch)):
            raise KernelFault(self._told(launch))
        for buffer in buffers:
            if buffer.writable and buffer.bytes:
                buffer.span()[:] = places[id(buffer)]
        if _counts is not None:
            _counts.append(Launch(name, launch.loaded, launch.stored, launch.read, launch.written))

    def _told(self, launch: _Launch) -> str:
        """The message of a fault, with the source lines of the instructions that it is about."""
        text, places = launch.message.decode(), {}
        for name in ("where", "other"):                        # a call returns to the instruction after it
            file, line = position(self.path, getattr(launch, name) - self.base - 1) if getattr(launch, name) else ("", 0)
            text, places[name] = text.replace(f"%{name}", f"line {line}"), f"{file}:{line}: " if file else ""
        return places["where"] + text
