"""One way to compare what engines compute: a function, its inputs, a yardstick, and one row per output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ember_ml.autodiff import tree
from ember_ml.ops import tensor
from ember_ml.tensor import EmberTensor

Row = dict[str, Any]


def row(case: str, engine: str, quantity: str, got: np.ndarray, expected: np.ndarray, tolerance: float,
        dtype: str = "float32", least: float = 0.0) -> Row:
    """One comparison, fit for JSON.

        error = max |got - expected| / max |expected|         (max |got| where expected is all zero; integers: share that differs)

    Args:
        case, quantity: what is compared. engine: who computed `got`. tolerance: largest error that passes.
        least: a smaller max |expected| counts as this, for what is a difference of larger numbers.
    """
    if got.shape != expected.shape:
        error = float("inf")
    elif got.dtype.kind in "iub":
        error = float(np.mean(got != expected)) if got.size else 0.0
    else:
        difference = np.abs(got.astype(np.complex128) - expected.astype(np.complex128))
        largest = max(float(np.abs(expected).max(initial=0.0)), least)
        error = float(difference.max(initial=0.0)) / (largest or 1.0)
    return {"case": case, "engine": engine, "dtype": dtype, "quantity": quantity, "error": error, "tolerance": tolerance,
            "pass": bool(error <= tolerance)}


def compare(case: str, fn: Callable, inputs: Any, engines: list[str], reference: Any, tolerance: float) -> list[Row]:
    """Rows for every output of `fn` on every engine, against a reference.

    Args:
        fn: function of EmberTensors (a tree like `inputs`) that returns a tree of EmberTensors.
        inputs: tree of NumPy arrays. reference: tree of NumPy arrays like fn's result.
        engines: names or devices. tolerance: as in `row`.

    An engine that raises gives one failed row with the error in place of a number, so that the others are still compared.
    """
    expected, rows = tree.named(reference), []
    for engine in engines:
        try:
            found = tree.named(fn(tree.map(lambda a: tensor(a, device=engine), inputs)))
        except (ValueError, TypeError, RuntimeError, NotImplementedError, LookupError, MemoryError) as e:
            rows.append({"case": case, "engine": engine, "dtype": "", "quantity": "run", "error": f"{type(e).__name__}: {e}",
                         "tolerance": tolerance, "pass": False})
            continue
        for name, value in expected.items():
            got = found[name].numpy() if isinstance(found[name], EmberTensor) else np.asarray(found[name])
            rows.append(row(case, engine, name or "value", got, np.asarray(value), tolerance, str(got.dtype)))
    return rows
