"""What a row of cases.py must satisfy on the engine that `em.using` has chosen; plain assertions, for pytest and GPU runs alike."""

import numpy as np

import ember_ml as em
from ember_ml.backend import current

COT = np.random.default_rng(1)


def tensors(case, dtype):
    return [em.tensor(a.astype(dtype) if a.dtype.kind == "f" else a) for a in case.inputs]


def expected(case):
    return np.asarray(case.expect(*[a.astype(np.float64) if a.dtype.kind == "f" else a for a in case.inputs]))


def close(got, want, relative, what=""):
    assert got.shape == want.shape, what
    if want.dtype.kind == "f":
        error = np.abs(got.astype(np.float64) - want).max(initial=0.0)
        assert error <= relative * max(np.abs(want).max(initial=0.0), 1e-3), f"{what}: error {error:.2e}"
    else:
        assert np.array_equal(got, want), what


def scalar(case, cot):
    return lambda *args: (case.call(*args) * em.tensor(cot)).sum()


def check_value(case):
    """float32 and, where the engine has it, float64, against NumPy in float64."""
    want = expected(case)
    for dtype, relative in (("float32", 2e-5), *((("float64", 1e-12),) if current()[0].name != "mlx" else ())):
        if dtype == "float64" and case.name in ("astype", "adam_update"):
            relative = 1e-6                                  # these have float32 inside by definition
        got = case.call(*tensors(case, dtype))
        close(got.numpy(), want, relative, dtype)
        if want.dtype.kind == "f" and case.name != "astype":
            assert str(got.dtype) == dtype


def differentiable(case) -> bool:
    return bool(case.grads) and all(case.inputs[i].size for i in case.grads)


def check_gradients(case):
    """The engine's own gradients and the tape's, each within float32's error, as for values, of the tape's in float64 on NumPy, which
    test_parity holds against slopes."""
    cot = COT.standard_normal(expected(case).shape).astype(np.float32)
    values = tensors(case, "float32")
    native = em.grad(scalar(case, cot), case.grads)(*values)
    taped = em.grad(scalar(case, cot), case.grads, mode="tape")(*values)
    with em.using("numpy"):
        exact = em.grad(scalar(case, cot.astype(np.float64)), case.grads)(*tensors(case, "float64"))
    for i, a, b, want in zip(case.grads, native, taped, exact):
        close(a.numpy(), want.numpy().astype(np.float64), 2e-5, f"gradient of input {i}")
        close(b.numpy(), want.numpy().astype(np.float64), 2e-5, f"the tape's gradient of input {i}")
