"""Parity of every op: values and gradients on every engine, in every dtype, against the op's definition in float64.

    error = max |got - wanted| / max |wanted| / eps(dtype)        (max |got| where all that is wanted is zero; integers: share that differs)

Inputs are rounded to the dtype before either side reads them. Wanted gradients are the tape's on NumPy in float64, which tests hold
against central differences of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import lru_cache

import numpy as np

from ember_ml.autodiff import grad
from ember_ml.backend import parse, using
from ember_ml.ops import permute_dims, tensor
from ember_ml.parity.cases.case import Case
from ember_ml.parity.compare import Row
from ember_ml.tensor import EmberTensor

EPS = {"float16": 2.0 ** -10, "bfloat16": 2.0 ** -7, "float32": 2.0 ** -23, "complex64": 2.0 ** -23, "float64": 2.0 ** -52,
       "complex128": 2.0 ** -52}
#: dtypes whose elements are right or wrong
WHOLE = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
#: largest error in units of eps: what some roundings in a row come to, and a digit for functions and sums of an engine's own
TOLERANCE = {"float16": 8.0, "bfloat16": 8.0, "float32": 32.0, "complex64": 32.0, "float64": 32.0, "complex128": 32.0}
_DOUBLE = {"float16": "float64", "bfloat16": "float64", "float32": "float64", "complex64": "complex128"}


def op_rows(case: Case, engine: str) -> list[Row]:
    """All rows of one case on one engine ("torch", "torch:cuda:0", ...): see `value_rows`, `form_rows`, `gradient_rows`."""
    return [*value_rows(case, engine), *form_rows(case, engine), *gradient_rows(case, engine)]


def compare_ops(cases: Iterable[Case], engines: list[str], told: Callable | None = None) -> list[Row]:
    """Rows of every case on every engine. `told(case)` is called before each, for a display."""
    rows = []
    for case in cases:
        if told:
            told(case)
        for engine in engines:
            rows += op_rows(case, engine)
    return rows


def value_rows(case: Case, engine: str, dtypes: Collection[str] = tuple(EPS) + WHOLE) -> list[Row]:
    """A row for each of the dtypes that the case and the engine have: the value against the definition."""
    with using(engine):
        return [_row(case, engine, dtype, "value", lambda d=dtype: _value_error(case, _tensors(case, d), _wide(case, d), d))
                for dtype in case.dtypes if dtype in dtypes and holds(engine, dtype)]


def form_rows(case: Case, engine: str) -> list[Row]:
    """Rows for inputs that are not contiguous in memory, have no elements, or no axes, in the first dtype of the case."""
    dtype = case.dtypes[0]
    inputs, rows = case.arrays(dtype), []
    with using(engine):
        if any(a.ndim and a.size for a in inputs):
            rows.append(_row(case, engine, dtype, "value, strided",
                             lambda: _value_error(case, [_strided(a) for a in inputs], _wide(case, dtype), dtype)))
        if case.empty is not None:
            rows.append(_row(case, engine, dtype, "value and gradient, empty", lambda: _empty_error(case, inputs, dtype)))
        if case.scalar:
            alone = [a.reshape(-1)[a.size // 2].reshape(()) for a in inputs]
            rows.append(_row(case, engine, dtype, "value, scalar",
                             lambda: _value_error(case, [tensor(a) for a in alone], [_double(a) for a in alone], dtype)))
    return rows


def gradient_rows(case: Case, engine: str, dtypes: Collection[str] = tuple(_DOUBLE)) -> list[Row]:
    """Rows for the engine's gradients; where those are its own, also for the tape's on it, in float32 and complex64."""
    rows = []
    if not case.grads or not all(case.inputs[i].size for i in case.grads):
        return rows
    with using(engine) as backend:
        for dtype in case.dtypes:
            if dtype in dtypes and dtype in _DOUBLE and holds(engine, dtype):
                both = backend.runtime.has_gradients and dtype in ("float32", "complex64")
                for mode in ("auto", "tape") if both else ("auto",):
                    rows.append(_row(case, engine, dtype, "gradient" if mode == "auto" else "gradient, taped",
                                     lambda d=dtype, m=mode: _gradient_error(case, d, m)))
    return rows


def holds(engine: str, dtype: str) -> bool:
    """Whether tensors of the dtype can be on that engine and device."""
    backend, device = parse(engine)
    return backend.holds(dtype, device)


def _row(case: Case, engine: str, dtype: str, quantity: str, error_of: Callable) -> Row:
    """One row; an error that is raised stands in place of the number."""
    try:
        error, unit = error_of()
        tolerance = TOLERANCE[unit] * case.slack if unit in TOLERANCE else 0.0
        passed = bool(error <= tolerance)
    except Exception as e:  # engines raise what they like; the other rows are still compared
        error, tolerance, passed = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0]}", 0.0, False
    return {"op": case.name, "case": case.id, "engine": engine, "dtype": dtype, "quantity": quantity, "error": error, "tolerance": tolerance,
            "pass": passed}


def _tensors(case: Case, dtype: str) -> list[EmberTensor]:
    return [tensor(a, dtype="bfloat16") if dtype == "bfloat16" and a.dtype.kind == "f" else tensor(a) for a in case.arrays(dtype)]


def _double(a: np.ndarray) -> np.ndarray:
    return a.astype({"f": np.float64, "c": np.complex128}.get(a.dtype.kind, a.dtype))


@lru_cache(maxsize=4096)
def _wide(case: Case, dtype: str) -> tuple[np.ndarray, ...]:
    """The inputs after rounding to the dtype, in float64 or complex128."""
    with using("numpy"):
        return tuple(_double(t.astype("float32").numpy() if str(t.dtype) == "bfloat16" else t.numpy()) for t in _tensors(case, dtype))


def _strided(a: np.ndarray) -> EmberTensor:
    """The same tensor from memory in another order: transposed, or every other element."""
    if a.ndim > 1:
        return permute_dims(tensor(np.ascontiguousarray(a.T)), tuple(reversed(range(a.ndim))))
    return tensor(np.stack([a, a[::-1]], axis=-1))[:, 0] if a.ndim else tensor(a)


def _difference(got: EmberTensor, wanted: np.ndarray, dtype: str) -> tuple[float, str]:
    """(error, the dtype whose eps is its unit; "" for a share)."""
    if got.shape != wanted.shape:
        raise AssertionError(f"expected shape {wanted.shape}, got {got.shape}")
    if wanted.dtype.kind in "iub":
        return float(np.mean(got.numpy() != wanted)) if wanted.size else 0.0, ""
    unit = max((d for d in (dtype, str(got.dtype)) if d in EPS), key=EPS.get)
    values = (got.astype("float32") if str(got.dtype) == "bfloat16" else got).numpy().astype(wanted.dtype)
    largest = float(np.abs(wanted).max(initial=0.0)) or 1.0
    return float(np.abs(values - wanted).max(initial=0.0)) / largest / EPS[unit], unit


def _value_error(case: Case, inputs, wide, dtype: str) -> tuple[float, str]:
    got, wanted = case.call(*inputs), np.asarray(case.expect(*wide))
    _check_dtype(case, got, wanted, dtype)
    return _difference(got, wanted, dtype)


def _check_dtype(case: Case, got: EmberTensor, wanted: np.ndarray, dtype: str):
    kind = {"f": "float", "c": "complex", "b": "bool"}.get(wanted.dtype.kind, "int")
    if kind in ("bool", "int"):
        right = got.dtype.kind == kind or kind == "int" and got.dtype.kind == "uint"
        expected = kind
    else:
        bits = next((d.bits for d in (got.dtype,) if dtype.startswith("int")), None) or {
            "float16": 16, "bfloat16": 16, "float32": 32, "float64": 64, "complex64": 32, "complex128": 64}[dtype]
        expected = case.result.get(dtype, dtype if kind == "float" and dtype.startswith(("float", "bfloat")) else
                                   f"float{bits}" if kind == "float" else f"complex{2 * bits}")
        right = str(got.dtype) == expected
    if not right:
        raise AssertionError(f"expected a result of {expected}, got {got.dtype}")


def _empty_error(case: Case, inputs: list[np.ndarray], dtype: str) -> tuple[float, str]:
    """Values of the right shape, and gradients of zero for everything that is left."""
    given = [tensor(a[:0] if i in case.empty else a) for i, a in enumerate(inputs)]
    wanted = np.asarray(case.expect(*_wide(case, dtype)))[:0]
    error = _difference(case.call(*given), wanted, dtype)
    if case.grads:
        grads = grad(lambda *args: _weighted(case.call(*args), _narrow(np.zeros(wanted.shape, wanted.dtype))), case.grads)(*given)
        for i, g in zip(case.grads, grads):
            if g.shape != given[i].shape or g.numpy().any():
                raise AssertionError(f"expected a gradient of zeros of shape {given[i].shape} for input {i}, got {g.tolist()}")
    return error


def _weighted(y: EmberTensor, cotangent: np.ndarray) -> EmberTensor:
    """The scalar Re sum(y conj(c)), whose gradient is what the rule makes of c."""
    c = tensor(cotangent).astype(y.dtype)
    return (y * c.conj()).real().sum() if y.dtype.kind == "complex" else (y * c).sum()


@lru_cache(maxsize=4096)
def cotangent(case: Case, dtype: str) -> np.ndarray:
    """What the result is weighted with: normal numbers that every dtype can hold."""
    rng, wanted = np.random.default_rng(1), np.asarray(case.expect(*_wide(case, dtype)))
    c = np.rint(rng.standard_normal(wanted.shape) * 16.0) / 16.0
    return c + 1j * np.rint(rng.standard_normal(wanted.shape) * 16.0) / 16.0 if wanted.dtype.kind == "c" else c


@lru_cache(maxsize=4096)
def exact_gradients(case: Case, dtype: str) -> tuple[np.ndarray, ...]:
    """The tape's gradients on NumPy in float64, at the inputs that the dtype holds."""
    with using("numpy"):
        given = [tensor(a) for a in _wide(case, dtype)]
        return tuple(g.numpy() for g in grad(lambda *args: _weighted(case.call(*args), cotangent(case, dtype)), case.grads, mode="tape")(*given))


def _gradient_error(case: Case, dtype: str, mode: str) -> tuple[float, str]:
    found = grad(lambda *args: _weighted(case.call(*args), _narrow(cotangent(case, dtype))), case.grads, mode=mode)(*_tensors(case, dtype))
    return max(_difference(g, wanted, dtype) for g, wanted in zip(found, exact_gradients(case, dtype)))


def _narrow(c: np.ndarray) -> np.ndarray:
    return c.astype(np.complex64 if c.dtype.kind == "c" else np.float32)
