"""Runs golden cases on engines and measures how far they are off, in units of the case's tolerance."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import ember_ml as em
from tests.golden.case import Built, Case, Tensors, find, left_out, lookup, tensor

#: engines whose float64 is one; MLX has none on a GPU
DOUBLE = ("numpy", "torch", "cupy")


@dataclass(frozen=True)
class Result:
    """What one case gave on one engine: the largest error over tolerance (at most 1 passes) and where it was."""

    case: str
    engine: str
    worst: float
    where: str
    fault: str = ""

    @property
    def passed(self) -> bool:
        return not self.fault and self.worst <= 1.0

    def __str__(self) -> str:
        end = self.fault or f"{self.worst:9.2e} of tolerance at {self.where}"
        return f"{'pass' if self.passed else 'FAIL'}  {self.case:<36} {self.engine:<10} {end}"


def run(case: Case, engine: str) -> Result:
    """Forward in float32 and, where the engine has it, float64; then the gradients of inputs and weights.

    A fault of Ember's or of the builder is a result, too.
    """
    build = lookup(case)
    if build is None:
        return Result(case.key, engine, np.inf, "", f"no builder; write one in tests/golden/{case.area}.py")
    try:
        with em.using(engine):
            ratios = _forward(case, build(case, "float32"), "float32")
            if engine.partition(":")[0] in DOUBLE and case.expected_f64:
                ratios |= _forward(case, build(case, "float64"), "float64")
            if case.cotangents:
                ratios |= _gradients(case, build(case, "float32"))
    except Exception as e:  # whatever it is: it fails this case, and the others still run
        at = traceback.extract_tb(e.__traceback__)[-1]
        return Result(case.key, engine, np.inf, "", f"{type(e).__name__}: {e} ({Path(at.filename).name}:{at.lineno})")
    where = max(ratios, key=ratios.get)
    return Result(case.key, engine, ratios[where], where)


def run_all(folder: Path, engines: list[str]):
    """Result of every case below the folder on every engine, as they come; without those that LEFT_OUT names."""
    for case in find(folder):
        if left_out(case):
            continue
        for engine in engines:
            yield run(case, engine)


def _forward(case: Case, built: Built, dtype: str) -> dict[str, float]:
    got = built.forward(case.tensors(dtype), built.params)
    wide = dtype == "float64"
    expected = case.expected_f64 if wide else case.expected
    _same_names(case, "outputs", set(got), set(case.expected))
    tolerance = case.tolerance["forward_f64" if wide else "forward"]
    end = " (float64)" if wide else ""
    return {name + end: _off(name, _array(got[name]), want, tolerance["rtol"], tolerance["atol"])
            for name, want in expected.items()}


def _gradients(case: Case, built: Built) -> dict[str, float]:
    inputs = case.tensors("float32")
    cotangents = {name: tensor(c, "float32") for name, c in case.cotangents.items()}
    of_inputs = {name: inputs[name] for name in case.input_gradients}
    of_params = {name: built.params[name] for name in case.param_gradients}

    def loss(some_inputs: Tensors, some_params: Tensors):
        y = built.forward(inputs | some_inputs, built.params | some_params)
        return sum((_flat_sum(y[name], c) for name, c in cotangents.items()), start=0.0)

    by_input, by_param = em.grad(loss, argnums=(0, 1))(of_inputs, of_params)
    tolerance, ratios = case.tolerance["grad"], {}
    for kind, got, want in (("input", by_input, case.input_gradients), ("param", by_param, case.param_gradients)):
        for name, g in want.items():
            largest = float(np.max(np.abs(g), initial=0.0))
            atol = tolerance["atol_rel_to_tensor_max"] * largest + tolerance["atol_floor"]
            ratios[f"grad.{kind}.{name}"] = _off(name, _array(got[name]), g, tolerance["rtol"], atol)
    return ratios


def _flat_sum(y, cotangent):
    if y.dtype.kind == "complex":                           # stored with a last axis of (real, imaginary)
        return (y.real() * cotangent[..., 0]).sum() + (y.imag() * cotangent[..., 1]).sum()
    return (y * cotangent).sum()


def _array(x) -> np.ndarray:
    a = x.numpy()
    return np.stack([a.real, a.imag], axis=-1) if a.dtype.kind == "c" else a


def _off(name: str, got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> float:
    """max |got - want| / (atol + rtol |want|); integers and booleans are right or infinitely off."""
    if got.shape != want.shape:
        raise ValueError(f"{name}: expected shape {want.shape}, got {got.shape}")
    if want.size == 0:
        return 0.0
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(got, want) else np.inf
    got, want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where(got == want, 0.0, np.abs(got - want) / (atol + rtol * np.abs(want)))
    return float(np.max(np.where(np.isnan(error), np.inf, error)))


def _same_names(case: Case, what: str, got: set[str], want: set[str]):
    if got != want:
        raise ValueError(f"{case.key}: the builder's {what} lack {sorted(want - got)} and add {sorted(got - want)}")
