"""What is known of a kernel on every machine: its file, its entries, its sizes. One spec serves the Metal and CUDA twins."""

from __future__ import annotations

from dataclasses import dataclass

#: threads of a threadgroup (Metal) or block (CUDA); both allow 1024, less leaves room for registers
THREADS = 256

#: threads that run in step: a simdgroup of every Apple GPU, a warp of every NVIDIA GPU
LANES = 32


@dataclass(frozen=True)
class Entry:
    """One kernel function. Its parameters are the inputs, the outputs, then the sizes, on every machine.

    Args:
        name: the kernel's name, `<stem>_<function>`; the work is done by `<stem>::<function>` of the file.
        inputs: names of the arrays it reads.
        outputs: names of the arrays it writes.
        sizes: (input, axis) of each size that it is told.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class KernelSpec:
    """The kernel of one op, as its declaration carries it.

    Args:
        name: the launcher's name in every engine's kernel table.
        stem: the twins are metal/<stem>.metal and cuda/<stem>.cu.
        entries: the kernel functions that one call launches.
        dtypes: names of the dtypes that it takes; for others the op uses its composite.
        registers: the most that a CUDA thread may use, without spilling.
    """

    name: str
    stem: str
    entries: tuple[Entry, ...]
    dtypes: tuple[str, ...]
    registers: int


def row_block(width: int) -> tuple[int, int]:
    """(x, y) threads of a group that works along rows of `width` elements: as wide as a row needs, whole simdgroups."""
    x = LANES
    while x < min(width, THREADS):
        x *= 2
    return x, THREADS // x
