"""The first-use check: a kernel is believed once it has agreed with its op's composite on this very machine.

Tests prove the algorithm on a CPU; compilers, drivers and chips they cannot see. So each engine compares a kernel with
the composite on a small input before it uses it: each form of the kernel, that is each of those that are compiled for what a call has,
and each dtype, at its own first use. A form that fails is left alone: the op runs its composite for such calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import RLock

from ember_ml.kernels.source import digest
from ember_ml.kernels.spec import Form, KernelSpec

#: largest difference allowed, relative to the largest element: some roundings of the dtype, both sides sum in float32;
#: none between whole numbers
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2, "int32": 0.0}

#: (output's name, the largest difference between kernel and composite over the composite's largest element, infinite where sizes differ
#: or a number is not finite), for each output
Compare = Callable[[], Iterable[tuple[str, float]]]


class KernelWarning(RuntimeWarning):
    """A kernel does not work on this machine; its op runs the composite instead."""


@dataclass(frozen=True)
class Outcome:
    """What the check of one form of a kernel on one machine found; `reason` is empty if the form is in use, `form` if there are no others."""

    kernel: str
    form: str
    dtype: str
    engine: str
    device: str
    version: str
    source: str
    reason: str

    @property
    def calls(self) -> str:
        """Which calls it is about."""
        return ", ".join(filter(None, (self.form, self.dtype)))


_outcomes: dict[tuple, Outcome] = {}
#: held while a kernel is compared, so that threads that come first together compare it, and warn, once; a composite may use other kernels
_comparing = RLock()


def outcomes() -> list[Outcome]:
    """Every check of this process, in the order in which they ran."""
    return list(_outcomes.values())


def trusted(spec: KernelSpec, form: Form, dtype: str, language: str, engine: str, device: str, version: str, compare: Compare) -> bool:
    """Whether the form of the kernel may be used. Compares at the first call per form, dtype, engine, device, version and source text.

    Args:
        spec: the kernel. form, dtype: of the call in question; dtype is that of its first argument.
        language: "metal" or "cuda": which of the twins.
        engine, device, version: the engine's name, its device's name and its version.
        compare: runs kernel and composite on the form's sample, and waits for the results: a lazy engine tells only then what does not
            compile or launch.

    A mismatch, or any error of `compare`, gives False for the rest of the process, one KernelWarning, and an entry in
    `outcomes()`.
    """
    key, missing = _key(spec, form, dtype, language, engine, device, version)
    with _comparing:
        if key not in _outcomes:
            _note(key, missing or fault(dtype, compare))
        return not _outcomes[key].reason


def distrust(spec: KernelSpec, form: Form, dtype: str, language: str, engine: str, device: str, version: str, error: Exception):
    """Notes that a form which agreed has failed to launch since: it asks for more than the device has, at some size.

    From here on `trusted` gives False for the same arguments. One KernelWarning.
    """
    key, _ = _key(spec, form, dtype, language, engine, device, version)
    with _comparing:
        if key not in _outcomes or not _outcomes[key].reason:
            _note(key, told(error))


def _key(spec, form, dtype, language, engine, device, version) -> tuple[tuple, str]:
    """(what an outcome is known by, why there is no text)."""
    try:
        text, missing = digest(language, spec.stem), ""
    except OSError as error:
        text, missing = "", str(error)
    return (spec.name, form, dtype, engine, device, version, text), missing


def _note(key, reason: str):
    name, form, dtype, engine, device, version, text = key
    _outcomes[key] = outcome = Outcome(name, str(form), dtype, engine, device, version, text, reason)
    if reason:
        warnings.warn(f"kernel {name} ({engine} {version}, {device}) is not used for {outcome.calls}, the op runs its composite there: "
                      f"{reason}", KernelWarning, stacklevel=3)


def fault(dtype: str, compare: Compare) -> str:
    """What is wrong with a kernel, in one line; empty if nothing is. `compare` is that of `trusted`."""
    try:
        for name, difference in compare():
            if not difference <= TOLERANCE[dtype]:
                return (f"{name} differs from the composite by {difference:.1e} of its largest element, "
                        f"allowed are {TOLERANCE[dtype]:.1e}")
    except Exception as error:  # compilers and drivers raise what they like; none of it may stop the caller's model
        return told(error)
    return ""


def told(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
