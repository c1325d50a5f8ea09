"""Finding engines, loading them at first use, and choosing where new tensors go.

Choice for creation functions: argument > `em.using(...)` > environment variable EMBER_BACKEND > mlx on Apple silicon >
torch if installed (on cuda if there is one) > numpy. Ops never ask here: they follow their inputs.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import platform
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from ember_ml.errors import BackendMissing, UnsupportedDevice
from ember_ml.tensor.interfaces.backend import Backend, Runtime

#: name -> (module that holds `backend`, package that must be installed, the command that brings it)
KNOWN = {
    "numpy": ("ember_ml.backend.numpy", "numpy", "pip install numpy"),
    "mlx": ("ember_mlx", "mlx", 'pip install "ember-ml[mlx]"'),
    "torch": ("ember_ml.backend.torch", "torch", 'pip install "ember-ml[torch]"'),
    "cupy": ("ember_ml.backend.cupy", "cupy", 'pip install "ember-ml[cuda]"'),
}

#: what a device is called where no engine stands before it
_DEVICES = ("cpu", "gpu", "cuda", "mps")

_loaded: dict = {}
_chosen: ContextVar[tuple | None] = ContextVar("ember_backend", default=None)


@lru_cache(maxsize=None)
def _announced() -> dict:
    """Engines of other packages: name -> entry point."""
    from importlib.metadata import entry_points              # takes a sixth of the time of `import ember_ml`, for nothing at most times
    return {e.name: e for e in entry_points(group="ember_ml.backends") if e.name not in KNOWN}


@lru_cache(maxsize=None)
def names() -> tuple[str, ...]:
    """All engines that Ember knows, installed or not: its own four, then those of other packages by entry point."""
    return (*KNOWN, *_announced())


@lru_cache(maxsize=None)
def installed(name: str) -> bool:
    """Whether the engine's package is there. Looks, does not import."""
    return name in names() and (name not in KNOWN or importlib.util.find_spec(KNOWN[name][1]) is not None)


def get(name: str):
    """The engine of that name, imported at first use.

    Raises BackendMissing: an unknown name (with the list), or a package that is missing or damaged (with the pip command).
    """
    if name in _loaded:
        return _loaded[name]
    if name not in names():
        raise BackendMissing(f"backend: expected one of {', '.join(names())}; got {name!r}")
    if not installed(name):
        raise BackendMissing(f"backend {name!r} is not installed; run: {KNOWN[name][2]}")
    if name not in KNOWN:
        _loaded[name] = _of_another_package(_announced()[name])
        return _loaded[name]
    module, _, command = KNOWN[name]
    try:
        _loaded[name] = importlib.import_module(module).backend
    except BackendMissing:
        raise
    except (ImportError, OSError, RuntimeError) as e:          # what damaged packages and missing libraries raise
        if (getattr(e, "name", None) or "").startswith("ember"):
            raise
        reason = (str(e).strip().splitlines() or [""])[0]
        raise BackendMissing(f"backend {name!r} is installed but does not load: {type(e).__name__}: {reason}; "
                             f"install it again: {command}") from e
    return _loaded[name]


def _of_another_package(entry):
    try:
        engine = entry.load()
    except Exception as e:                                     # a stranger's package: whatever it raises, the other engines go on
        raise BackendMissing(f"backend {entry.name!r}: {entry.value} does not load: {type(e).__name__}: {e}") from e
    lacks = [name for name in _asked(Backend) if not hasattr(engine, name)]
    if "runtime" not in lacks:
        optional = () if getattr(engine.runtime, "has_gradients", False) else ("value_and_grad",)
        lacks += [f"runtime.{name}" for name in _asked(Runtime) if name not in optional and not hasattr(engine.runtime, name)]
    if lacks:
        raise BackendMissing(f"backend {entry.name!r}: {entry.value} lacks {', '.join(lacks)}; what an engine offers is told in "
                             f"{Backend.__module__}, and ember_ml.backend.base.BackendBase has the rest")
    return engine


def _asked(protocol) -> list[str]:
    return [name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")]


def available() -> list[str]:
    """Engines that are installed and load. CuPy counts only where a GPU is at hand."""
    found = []
    for name in names():
        if installed(name):
            try:
                get(name)
                found.append(name)
            except BackendMissing:
                continue
    return found


@lru_cache(maxsize=None)
def _default() -> str:
    if platform.system() == "Darwin" and platform.machine() == "arm64" and installed("mlx"):
        return "mlx"
    return "torch" if installed("torch") else "numpy"


def parse(where: str | None) -> tuple:
    """(engine, device or None) meant by "torch", "torch:cuda:0", "cpu" (of the current engine), or None.

    Raises BackendMissing for an engine that is missing or nearly named so, UnsupportedDevice for what is neither engine nor device.
    """
    if where is None:
        return current()
    if not isinstance(where, str):
        raise TypeError(f"device: expected a string such as 'torch' or 'torch:cuda:0'; got {where!r}")
    name, _, device = where.partition(":")
    if name in names():
        chosen = _chosen.get()
        backend = chosen[0] if chosen is not None and chosen[0].name == name else get(name)
        return backend, device or backend.default_device
    if name not in _DEVICES and (near := difflib.get_close_matches(name, names(), 1)):
        raise BackendMissing(f"backend: expected one of {', '.join(names())}; got {name!r}; did you mean {near[0]!r}?")
    backend = current()[0]
    if name not in _DEVICES and name not in {d.partition(":")[0] for d in backend.devices()}:
        raise UnsupportedDevice(f"device: expected an engine ({', '.join(names())}), with or without a device of it, or a device of {backend.name} "
                                f"({', '.join(backend.devices())}); got {where!r}")
    return backend, where


def current() -> tuple:
    """(engine, device) that creation functions use when no argument says otherwise."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    name, _, device = os.environ.get("EMBER_BACKEND", "").partition(":")
    backend = get(name or _default())
    return backend, device or backend.default_device


@contextmanager
def using(backend, device: str | None = None):
    """Inside `with em.using("torch", device="cuda:0"):`, new tensors are made there. Ops follow their inputs.

    A call without `with` chooses nothing; for a whole process set EMBER_BACKEND.

    Args:
        backend: engine name, or "engine:device"; or an engine object, which then stands for all of its name.
        device: device of that engine; None is the engine's default.
    """
    engine, found = parse(backend) if backend is None or isinstance(backend, str) else (backend, backend.default_device)
    token = _chosen.set((engine, device or found))
    try:
        yield engine
    finally:
        _chosen.reset(token)
