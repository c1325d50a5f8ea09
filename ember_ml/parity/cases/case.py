"""One row an op: how it is called, on what, and what NumPy says in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class Case:
    """What an op is compared on.

    Args:
        name: of the op that the row covers; ops that are only an inner form of a public function are called through it.
        call: public function of tensors. inputs: float64, complex128, integer or bool arrays, away from ties and from the borders of
            domains, where engines rightly differ. expect: the definition, in NumPy.
        grads: which inputs are differentiated; None for all that are floating, () where the op is constant or has no gradient.
        label: tells several rows of an op apart.
        also: further kinds of numbers that the row means the same for: "i" integers, "c" complex, or both.
        empty: inputs whose first axis may have length zero, together; the result's first axis then has length zero too.
        scalar: whether the row means the same for inputs without axes.
        single: why the row is not run in half precision; "" where it is.
        slack: by how much the tolerances are wider than those of one op, for rows that compute many in a row.
        result: dtype of the result by dtype of the inputs, where they differ.
    """

    name: str
    call: Callable
    inputs: list
    expect: Callable
    grads: tuple | None = None
    label: str = ""
    also: str = ""
    empty: tuple | None = None
    scalar: bool = False
    single: str = ""
    slack: float = 1.0
    result: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.grads is None:
            self.grads = tuple(i for i, a in enumerate(self.inputs) if a.dtype.kind in "fc")

    @property
    def id(self) -> str:
        return f"{self.name} {self.label}".strip()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Every dtype that the row is run in: that of its complex inputs, else of its floating ones, else of its integers."""
        kinds = {a.dtype.kind for a in self.inputs}
        if "c" in kinds:
            return ("complex64", "complex128")
        if "f" not in kinds:
            return (next((a.dtype.name for a in self.inputs if a.dtype.kind in "iu"), "bool"),)
        return ("float32", *(() if self.single else ("float16", "bfloat16")), "float64", *(("int32", "int64") if "i" in self.also else ()),
                *(("complex64", "complex128") if "c" in self.also else ()))

    def arrays(self, dtype: str) -> list[np.ndarray]:
        """The inputs as numbers that `dtype` can hold, bfloat16 apart: indices and bools stay as they are."""
        return [_as(a, dtype, "c" in {x.dtype.kind for x in self.inputs}) for a in self.inputs]


def _as(a: np.ndarray, dtype: str, has_complex: bool) -> np.ndarray:
    if a.dtype.kind in "iub":
        return a
    if dtype.startswith("int"):
        return np.rint(3.0 * a).astype(dtype)
    if dtype.startswith("complex"):
        real = "float32" if dtype == "complex64" else "float64"
        return a.astype(real) if has_complex and a.dtype.kind == "f" else (a if has_complex else a + 0.8j * np.flip(a)).astype(dtype)
    return a.astype("float32" if dtype == "bfloat16" else dtype)


def at_least_single(x):
    """x in float32 at least, for arguments of inner ops that half precision never reaches."""
    return x if x.dtype.bits >= 32 else x.astype("float32")


#: `result` of ops that give float32 for half precision
WIDENED = {"float16": "float32", "bfloat16": "float32"}

#: every row; the files of this package add to it
CASES: list[Case] = []


def row(name: str, call: Callable, inputs: list, expect: Callable, grads: tuple | None = None, label: str = "", **rest):
    """Adds a row: see `Case`."""
    CASES.append(Case(name, call, inputs, expect, grads, label, **rest))


def draws(seed: int) -> tuple[Callable, Callable]:
    """(real, ints): makers of inputs with a stream of their own, so that a row more here moves no number elsewhere."""
    rng = np.random.default_rng(seed)

    def real(*shape, low=-2.0, high=2.0):
        """Distinct values in a range, in random order."""
        n = math.prod(shape)
        return rng.permutation(np.linspace(low, high, n) if n > 1 else np.full(n, 0.3 * (low + 2 * high))).reshape(shape)

    def ints(*shape, high=5):
        return rng.integers(0, high, shape).astype(np.int32)

    return real, ints
