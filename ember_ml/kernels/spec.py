"""What is known of a kernel on every machine: one spec serves the Metal and the CUDA twin."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod, sin
from typing import NamedTuple

from ember_ml.errors import UnsupportedDtype

#: threads of a threadgroup (Metal) or block (CUDA); both allow 1024, less leaves room for registers
THREADS = 256

#: threads that run in step: a simdgroup of every Apple GPU, a warp of every NVIDIA GPU
LANES = 32

#: names of the dtypes that kernels take; for others an op uses its composite
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Entry:
    """One kernel function. Its parameters are the inputs, the outputs, the sizes, then the numbers, on every machine.

    The function of the file takes the threadgroup's memory too, if it works in any, and the thread's position.

    Args:
        name: the kernel's name, `<stem>_<function>`; the work is done by `<stem>::<function>` of the file.
        inputs: (name, dtype) of the arrays it reads; the dtype "T", which the first one has, is any
            of DTYPES, but one for all. Some kernels have no such array.
        outputs: names of the arrays it writes.
        sizes: (input, axis) of each size that it is told.
        shared: the type, in the file's namespace, of the threadgroup memory that it works in; empty for none.
        numbers: names of the whole numbers that it is told besides.
    """

    name: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]
    shared: str = ""
    numbers: tuple[str, ...] = ()

    @property
    def typed(self) -> bool:
        """Whether it is made for each of DTYPES."""
        return any(kind == "T" for _, kind in self.inputs)

    @property
    def stem(self) -> str:
        """The file of the entry, and the namespace of its function there."""
        return self.name.partition("_")[0]

    @property
    def function(self) -> str:
        """The function of that namespace."""
        return self.name.partition("_")[2]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.inputs)

    def own_dtype(self, given: Sequence[str]) -> str:
        """What "T" is in a call with inputs of these dtypes. Raises UnsupportedDtype if one does not fit."""
        own = given[0]
        for (name, wanted), dtype in zip(self.inputs, given):
            allowed = (wanted,) if wanted != "T" else (own,) if own in DTYPES else DTYPES
            if dtype not in allowed:
                raise UnsupportedDtype(f"{self.name}: expected {name} in {' or '.join(allowed)}, got {dtype}; "
                                       "cast it with .astype(...)")
        return own


@dataclass(frozen=True, eq=False)
class TemplateEntry(Entry):
    """A kernel function that is compiled for what a call has: a plan, gates, taps. Of its inputs and outputs some may be missing.

    The dtype "W" is one of DTYPES, too, that of the taps.

    Args:
        shared: "float" where it works in as many floats of threadgroup memory as a launch says.
        strided: how many inputs, the first ones, it reads where they lie: it is told their strides after the numbers.
        strides: how many of each CUDA's twin is told; where it is told two of three, the last axis is contiguous.
    """

    strided: int = 0
    strides: int = 3


#: which of its kernels a call takes, of those that are compiled for what calls have; `str` says it to a person
Form = Hashable

#: the form of a call of a kernel that has no others
ONE_FORM = ""


class Sample(NamedTuple):
    """Small inputs of a launcher: numbers as a nested list or `sample_values`, None or `Prepared` for each argument, and its keywords."""

    arrays: tuple
    static: Mapping[str, object] = {}


class Prepared(NamedTuple):
    """Stands in a sample for a filter of `fftconv` that was prepared, of these taps."""

    k: memoryview
    k_reverse: memoryview | None


@dataclass(frozen=True)
class KernelSpec:
    """The kernel of one op, as its declaration carries it.

    Args:
        name: the launcher's name in every engine's table of kernels.
        entries: the kernel functions that one call launches, all of one file.
        launch: what a launcher does, for the engine's `Gpu`, its arrays and static keywords; returns an array or a tuple of them.
        sample: makes a small call of a form, for the check at its first use: what is compiled for it is what is compiled for every call
            of that form. Every array has 8 elements at least: for fewer MLX compiles another kernel.
        registers: the most that a CUDA thread may use, without spilling.
        shared_bytes: the most shared memory that a CUDA block uses.
        form: the form of a call, asked with the launcher's arguments, of which it may read shapes and dtypes. None for a call that
            the kernel does not serve, such as sizes beyond a limit: the op runs its composite.
        forms: those that the self-test runs: the first in every dtype, the others in one.
        takes: (name, dtype) of the launcher's arrays, as an entry's inputs; empty where they are those of the first entry.
    """

    name: str
    entries: tuple[Entry, ...]
    launch: Callable[..., object]
    sample: Callable[[Form], Sample]
    registers: int
    shared_bytes: int = 0
    form: Callable[..., Form | None] = lambda *args, **static: ONE_FORM
    forms: Sequence[Form] = (ONE_FORM,)
    takes: tuple[tuple[str, str], ...] = ()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What the launcher's first argument may be."""
        kind, *_ = self.kinds("")
        return (kind,) if kind else DTYPES

    def kinds(self, own: str) -> list[str]:
        """The dtypes of the launcher's arrays, `own` for those that are made for any."""
        return [own if kind == "T" else kind for _, kind in self.takes or self.entries[0].inputs]

    @property
    def stem(self) -> str:
        """The twins are metal/<stem>.metal and cuda/<stem>.cu."""
        return self.entries[0].stem


@cache
def _period(seed: int, largest: float) -> array:
    """Numbers after which samples begin again: as many as no size of a kernel divides."""
    return array("f", (largest * sin(seed + (1.7 + 0.07 * seed) * i ** 1.1) for i in range(4099)))


def sample_values(*shape: int, seed: int, largest: float = 1.0) -> memoryview:
    """Numbers without a pattern that a wrong index could hit; what takes nested lists takes them, and long ones as fast."""
    period, size = _period(seed, largest), prod(shape)
    return memoryview((period * -(-size // len(period)))[:size]).cast("B").cast("f", shape)
