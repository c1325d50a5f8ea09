"""What an engine must offer: the Backend protocol and the Runtime protocol.

An engine of another package derives from `ember_ml.backend.base.BackendBase`, which has what is not named here, and announces its object by an
entry point of the group "ember_ml.backends". `ember_ml.backend.get` refuses one that lacks any of these, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ember_ml.tensor.common.dtypes import DType

Native = Any  # an engine's own array type


class Runtime(Protocol):
    """What an engine does its own way. Functions here take and return native arrays."""

    compiles: str | None
    """What `em.compile` should be given: "step" (whole training step), "loss" (the loss only) or None (nothing)."""

    has_gradients: bool
    """Whether `value_and_grad` is the engine's own; where not, Ember's tape serves and `value_and_grad` is never called."""

    def value_and_grad(self, fn: Callable, leaves: list[Native]) -> tuple[Native, Any, list[Native]]:
        """(value, aux, gradients) of `fn(leaves) -> (scalar, aux)`."""

    pull: Callable | None
    """`pull(fn, inputs, cotangents)`: gradients of sum(output * cotangent) for the outputs of `fn(list) -> list`, None without a path, by
    the engine's own gradient, for rules that run a function again. None where Ember's tape does it."""

    def with_rule(self, forward: Callable, rule: Callable, args: list[Native],
                  keeps_output: bool = True) -> Native | tuple[Native, ...]:
        """`forward(*args)` whose gradient is `rule(cotangents, outputs, args, needs) -> [gradient or None per arg]`; without
        keeps_output the rule reads no output, and an engine that would keep a single one need not."""

    def is_watched(self, x: Native) -> bool:
        """Whether a gradient of the engine's own, by `value_and_grad`, may run through x."""

    def read(self, x: Native) -> list | None:
        """The values of x, if the engine may be waited for here; None inside a compiled step and on a lazy engine."""

    operator: Callable | None
    """Makes a kernel an operator of the engine's own, where its tracing and compilation ask for that:
    `operator(name, signature, launch, composite, rule) -> function of natives`. `composite(*natives, **static)` tells
    the outputs' shapes and dtypes; `rule(args, static, cotangents, outputs, needs)` is the gradient, None for the
    composite's. None on engines that take any function."""

    def untraced(self) -> AbstractContextManager:
        """Inside, nothing is recorded for a gradient or a compilation that is going on."""

    def inference(self) -> AbstractContextManager:
        """Inside, the engine's own gradient is not asked for: what looks for it at every operation may be left out."""

    def checkpoint(self, fn: Callable) -> Callable:
        """`fn(*natives)`, keeping only its inputs for the gradient and computing the rest again."""

    def compile(self, fn: Callable) -> Callable:
        """A faster `fn(*natives) -> list of natives`, or `fn` itself."""

    def stop_gradient(self, x: Native) -> Native:
        """`x`, through which no gradient flows."""

    def after(self, natives: list[Native], on: list[Native]) -> list[Native]:
        """`natives`, to be used only once `on` are computed: keeps a lazy engine from working ahead and filling memory."""

    def buffer(self, like: Native, shape: tuple[int, ...]) -> Native | None:
        """An array of `like`'s dtype and device to be written piece by piece. None where arrays must not be written."""

    def synchronize(self, natives: list[Native]) -> None:
        """Returns once these arrays are computed."""

    def pace(self, natives: Callable[[], list[Native]]) -> None:
        """Told once per update of a long run what is to be computed: a lazy engine asks, starts on it and waits for the update before, so
        that one update is computed while the next is made ready. Engines that compute at once need no pacing."""

    def long_run(self) -> AbstractContextManager:
        """Inside, the engine's memory limits fit a computation that has the machine to itself; afterwards they are as before."""

    def peak_memory(self) -> int:
        """Largest number of bytes in use since `reset_peak_memory`, or of the process where that is unknown."""

    def reset_peak_memory(self) -> None:
        """Starts a new measurement of `peak_memory` where the engine can."""

    def describe(self) -> dict[str, str]:
        """Version, devices, memory limits: what `ember doctor` prints."""


class Backend(Protocol):
    """An engine: a table of native functions by op name, dtypes, exchange, and a runtime."""

    name: str
    table: dict[str, Callable]
    runtime: Runtime
    dtypes: dict[DType, Any]
    array_types: tuple[type, ...]
    """Classes of its arrays."""
    weak_floats: frozenset
    """Its own dtypes beside which its functions take a Python number as it is, without widening."""

    def dtype_of(self, x: Native) -> DType: ...
    def device_of(self, x: Native) -> str: ...
    def is_at_hand(self, arrays: Sequence[Native]) -> bool: ...
    def astype(self, x: Native, dtype: DType) -> Native: ...
    def from_numpy(self, array, dtype: DType | None, device: str | None) -> Native: ...
    def from_python(self, data, dtype: DType | None, device: str | None) -> Native:
        """Python numbers, nested lists or NumPy arrays, copied; without a dtype in Ember's defaults, as `read_values` of the NumPy engine gives them."""
    def full(self, shape: tuple[int, ...], value, dtype: DType, device: str | None) -> Native: ...
    def arange(self, start, stop, step, dtype: DType, device: str | None) -> Native: ...
    def to_numpy(self, x: Native): ...
    def to_device(self, x: Native, device: str) -> Native: ...
    def to_dlpack(self, x: Native, **kw): ...
    def devices(self) -> list[str]: ...
    def memory(self, device: str) -> int: ...
    def launchers(self, device: str) -> dict[str, Callable]: ...
