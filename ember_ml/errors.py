"""The errors that Ember raises on purpose. Each says what was expected, what came, and what to do.

Every class also is the built-in error that a caller would expect (a `ValueError`, a `TypeError`, ...), and all of
them are `EmberError`, so that `except EmberError` catches what Ember found and nothing else.
"""

import reprlib


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


class DataError(EmberError, ValueError):
    """Input data that cannot be read as what it claims to be."""
