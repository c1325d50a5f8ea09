"""The first-use check: a kernel is believed once it has agreed with its op's composite on this very machine.

Tests prove the algorithm on a CPU; compilers, drivers and chips they cannot see. So each engine compares a kernel with
the composite on a small input before it uses it. A kernel that fails is left alone: the op runs its composite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import RLock

from ember_ml.kernels.source import digest
from ember_ml.kernels.spec import DTYPES, KernelSpec

#: largest difference allowed, relative to the largest element: some roundings of the dtype, both sides sum in float32;
#: none between whole numbers
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2, "int32": 0.0}

#: for a dtype's name: (output's name, the kernel's flat list of numbers, the composite's), for each output
Compare = Callable[[str], Iterable[tuple[str, Sequence[float], Sequence[float]]]]


class KernelWarning(RuntimeWarning):
    """A kernel does not work on this machine; its op runs the composite instead."""


@dataclass(frozen=True)
class Outcome:
    """What the check of one kernel on one machine found; `reason` is empty if the kernel is in use."""

    kernel: str
    engine: str
    device: str
    version: str
    source: str
    reason: str


_outcomes: dict[tuple[str, ...], Outcome] = {}
#: held while a kernel is compared, so that threads that come first together compare it, and warn, once; a composite may use other kernels
_comparing = RLock()


def outcomes() -> list[Outcome]:
    """Every check of this process, in the order in which they ran."""
    return list(_outcomes.values())


def trusted(spec: KernelSpec, language: str, engine: str, device: str, version: str, compare: Compare) -> bool:
    """Whether the kernel may be used. Compares at the first call per engine, device, version and source text.

    Args:
        spec: the kernel.
        language: "metal" or "cuda": which of the twins.
        engine, device, version: the engine's name, its device's name and its version.
        compare: runs kernel and composite on a small input; it is called for each of the spec's dtypes.

    A mismatch, or any error of `compare`, gives False for the rest of the process, one KernelWarning, and an entry in
    `outcomes()`.
    """
    key, missing = _key(spec, language, engine, device, version)
    with _comparing:
        if key not in _outcomes:
            _note(key, missing or fault(compare, spec.dtypes))
        return not _outcomes[key].reason


def distrust(spec: KernelSpec, language: str, engine: str, device: str, version: str, error: Exception):
    """Notes that a kernel which agreed has failed to launch since: it asks for more than the device has, at some size.

    From here on `trusted` gives False for the same arguments. One KernelWarning.
    """
    key, _ = _key(spec, language, engine, device, version)
    with _comparing:
        if key not in _outcomes or not _outcomes[key].reason:
            _note(key, told(error))


def _key(spec, language, engine, device, version) -> tuple[tuple[str, ...], str]:
    """(what an outcome is known by, why there is no text)."""
    try:
        text, missing = digest(language, spec.stem), ""
    except OSError as error:
        text, missing = "", str(error)
    return (spec.name, engine, device, version, text), missing


def _note(key, reason: str):
    _outcomes[key] = Outcome(*key, reason)
    if reason:
        name, engine, device, version, _ = key
        warnings.warn(f"kernel {name} ({engine} {version}, {device}) is not used, the op runs its composite: {reason}",
                      KernelWarning, stacklevel=3)


def fault(compare: Compare, dtypes: Sequence[str] = DTYPES) -> str:
    """What is wrong with a kernel, in one line; empty if nothing is. `compare` is that of `trusted`."""
    for dtype in dtypes:
        try:
            for name, got, expected in compare(dtype):
                difference = _relative_difference(got, expected)
                if not difference <= TOLERANCE[dtype]:
                    return (f"{name} in {dtype} differs from the composite by {difference:.1e} of its largest element, "
                            f"allowed are {TOLERANCE[dtype]:.1e}")
        except Exception as error:  # compilers and drivers raise what they like; none of it may stop the caller's model
            return f"{dtype}: {told(error)}"
    return ""


def told(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _relative_difference(got: Sequence[float], expected: Sequence[float]) -> float:
    """Largest difference over the largest element; infinite where sizes differ or a number is not finite."""
    if len(got) != len(expected) or not all(map(math.isfinite, [*got, *expected])):
        return math.inf
    largest = max(map(abs, expected), default=0.0)
    return max((abs(a - b) for a, b in zip(got, expected)), default=0.0) / (largest or 1.0)
