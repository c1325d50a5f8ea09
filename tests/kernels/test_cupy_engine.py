"""The whole CuPy engine over the stand-in: every op's parity row, values and gradients, and the engine's own parts."""

import importlib

import numpy as np
import pytest

import ember_ml as em
from ember_ml import backend as engines
from ember_ml.errors import UnsupportedDevice
from ember_ml.kernels import selfcheck
from ember_ml.ops import REGISTRY
from ember_ml.parity.cases import CASES
from ember_ml.parity.ops import form_rows, gradient_rows, op_rows, value_rows
from tests.ops.rows import check


@pytest.fixture
def cupy_engine(cuda, monkeypatch):
    """The CuPy engine, in use."""
    engine = importlib.import_module("ember_ml.backend.cupy").backend
    monkeypatch.setitem(engines._loaded, "cupy", engine)
    monkeypatch.setattr(selfcheck, "_outcomes", {})
    with em.using("cupy"):
        yield engine
    for op in REGISTRY.values():
        op.resolved.pop(engine, None)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_row(cupy_engine, case):
    if case.name in REGISTRY and REGISTRY[case.name].kernel is not None:
        check(op_rows(case, "cupy"))
    else:                                                    # NumPy's own functions, which have all their dtypes in tests/ops
        few = ("float32", "bfloat16", "complex64", "int32", "uint32", "bool")
        check([*value_rows(case, "cupy", few), *form_rows(case, "cupy"), *gradient_rows(case, "cupy", few[:1])])


def test_tensors_know_their_device_and_move(cupy_engine):
    x = em.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert str(x.device) == "cupy:cuda:0" and isinstance(x.data, cupy_engine.xp.ndarray)
    assert x.to("numpy").numpy().tolist() == x.numpy().tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert x.to("numpy").to("cupy").backend is cupy_engine
    assert em.ones((2,), dtype="bfloat16").numpy().dtype.name == "bfloat16"
    with pytest.raises(UnsupportedDevice, match="expected cuda:0"):
        em.tensor([1.0], device="cupy:cpu")


def test_random_numbers_are_those_of_the_other_engines(cupy_engine):
    mine = em.random.normal(em.random.key(3), (5, 7)).numpy()
    with em.using("numpy"):
        np.testing.assert_allclose(mine, em.random.normal(em.random.key(3), (5, 7)).numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int64", "int16", "uint8"])
def test_scattered_sums_in_dtypes_that_cuda_cannot_add(cupy_engine, dtype):
    x, at, more = em.tensor([1, 2, 3], dtype=dtype), em.tensor([2, 0, 2]), em.tensor([1, 4, 2], dtype=dtype)
    got = em.ops.scatter_add(x, at, more)
    assert str(got.dtype) == dtype and got.astype("int32").numpy().tolist() == [5, 2, 6]
    if dtype == "int64":
        assert em.ops.scatter_add(-x, at, more).numpy().tolist() == [3, -2, 0]
