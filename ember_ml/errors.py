"""The errors that Ember raises on purpose. Each says what was expected, what came, and what to do.

Every class also is the built-in error that a caller would expect (a `ValueError`, a `TypeError`, ...), and all of
them are `EmberError`, so that `except EmberError` catches what Ember found and nothing else.
"""

import re
import reprlib
from collections.abc import Callable


class _Short(reprlib.Repr):
    """repr for messages. What a stranger's file holds may be long or deep: it is cut."""

    def __init__(self):
        super().__init__()
        self.maxstring, self.maxother = 120, 60

    def repr_int(self, x, level):
        return super().repr_int(x, level) if abs(x) < 1 << 1000 else f"a number of {x.bit_length():,} bits"    # Python writes out no longer ones


show = _Short().repr


class EmberError(Exception):
    """Base of all errors that Ember raises on purpose."""


class UnsupportedOp(EmberError, NotImplementedError):
    """An op that this engine (or this form of differentiation) does not have."""


class UnsupportedDtype(EmberError, TypeError):
    """A dtype that this engine or device cannot hold or compute with."""


class BackendMismatch(EmberError, TypeError):
    """One op was given tensors of two engines."""


class BackendMissing(EmberError, ImportError):
    """An engine that is not installed, or that finds no device to run on."""


class MissingExtra(EmberError, ImportError):
    """An optional package that is not installed; the message holds the pip command that brings it."""


class UnsupportedDevice(EmberError, ValueError):
    """A device that the engine does not have."""


class ShapeError(EmberError, ValueError):
    """Shapes that do not fit together."""


class AxisError(ShapeError, IndexError):
    """An axis that a tensor does not have."""


class ConfigError(EmberError, ValueError):
    """A configuration with an unknown key, a missing key or a value out of its range."""


class RegistryError(EmberError, LookupError):
    """A name that is not registered, or that is taken."""


class WeightsError(EmberError, ValueError):
    """A weight file that is damaged, hostile, or does not fit the model."""


class StorageError(EmberError, OSError):
    """A file that cannot be written: no space is left, or it is not allowed."""


class Elsewhere:
    """A name that people who come from other libraries look for: no attribute here, but told what stands in its place.

    A descriptor that raises AttributeError. With a `__getattr__` on the class Python would take its slow way at every access to every attribute.
    """

    def __init__(self, name: str, hint: str):
        self.name, self.hint = name, hint

    def __get__(self, obj, owner):
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}; {self.hint}", name=self.name, obj=obj)


class OutOfMemory(EmberError, MemoryError):
    """An engine or the machine has less memory left than a step asks for."""


class DataError(EmberError, ValueError):
    """Input data that cannot be read as what it claims to be."""


#: what engines, drivers and Metal write where memory is at its end; CuPy and NumPy raise MemoryErrors
_NO_MEMORY = re.compile(r"out.?of.?memory|not enough memory|insufficient memory|(unable|failed|can't|cannot) (to )?allocate|"
                        r"maximum allowed buffer size|alloc_failed", re.IGNORECASE)
_ASKED = re.compile(r"allocat(?:e|ing) (\d[\d,.]*) ?(bytes|[KMGTPE]iB)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, an engine's or Ember's own, says that memory is at its end."""
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


def out_of_memory(what: str, engine: str, error: BaseException) -> OutOfMemory:
    """The engine's error told as what it is. `what`: the op, and what it was given."""
    text = str(error).strip()
    asked = _ASKED.search(text)
    number, unit = (float(asked[1].replace(",", "")), asked[2]) if asked else (0.0, "bytes")
    if unit == "bytes":
        power = min((int(number).bit_length() - 1) // 10, 6) if number else 0
        number, unit = number / 1024 ** power, ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")[power]
    return OutOfMemory(f"{what}: out of memory on {engine}{f', asked for {number:.4g} {unit}' if asked else ''}; take a smaller batch or a "
                       "shorter length, keep less for the gradient (em.checkpoint, recompute in configs), or go chunk by chunk"
                       f"{f' (the engine: {text.splitlines()[0]})' if text else ''}")


class memory_told:
    """`with memory_told(engine, what):` an engine's error that says that memory is at its end leaves as OutOfMemory; what() says where."""

    __slots__ = ("engine", "what")

    def __init__(self, engine: str, what: Callable[[], str]):
        self.engine, self.what = engine, what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _trace):
        if error is not None and not isinstance(error, EmberError) and is_out_of_memory(error):
            raise out_of_memory(self.what(), self.engine, error) from error
