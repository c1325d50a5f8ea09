"""Promotion, weak scalars, and what each engine refuses."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import UnsupportedDtype
from ember_ml.tensor import dtype, promote
from ember_ml.tensor.common.dtypes import ALL

TABLE = {                                                    # the array API standard's table, one line a kind
    ("int8", "int16"): "int16", ("int8", "uint8"): "int16", ("int16", "uint8"): "int16", ("int32", "uint8"): "int32",
    ("int64", "uint32"): "int64", ("int32", "uint32"): "int64", ("uint8", "uint64"): "uint64", ("float32", "float64"): "float64",
    ("float32", "complex64"): "complex64", ("float32", "complex128"): "complex128", ("float64", "complex64"): "complex128",
    # undefined there: the floating kind wins and keeps its width
    ("int32", "float32"): "float32", ("int64", "float16"): "float16", ("bool", "int8"): "int8", ("bool", "float32"): "float32",
    ("float16", "bfloat16"): "float32", ("float16", "float32"): "float32", ("int64", "complex64"): "complex64",
}


@pytest.mark.parametrize("pair, want", TABLE.items(), ids=str)
def test_promotion(pair, want):
    a, b = (dtype(d) for d in pair)
    assert str(promote(a, b)) == str(promote(b, a)) == want


def test_promotion_is_reflexive_and_refuses_uint64_with_signed():
    assert all(promote(d, d) is d for d in ALL)
    with pytest.raises(UnsupportedDtype, match="int64 and uint64|uint64 and int64"):
        promote(dtype("int64"), dtype("uint64"))


def test_names_and_python_types():
    assert dtype(float) is em.float32 and dtype(int) is em.int32 and dtype(bool) is em.bool_ and dtype(complex) is em.complex64
    assert dtype(np.dtype("int8")) is em.int8 and dtype("bfloat16") is em.bfloat16
    with pytest.raises(UnsupportedDtype, match="expected one of .*float32"):
        dtype("float8")


@pytest.mark.parametrize("a, b, want", [("int32", "float32", "float32"), ("int8", "int32", "int32"), ("bool", "float16", "float16"),
                                        ("float16", "float32", "float32"), ("bfloat16", "float32", "float32"),
                                        ("int32", "complex64", "complex64")])
def test_every_engine_promotes_alike(backend, a, b, want):
    x, y = em.ones((2,)).astype(a), em.ones((2,)).astype(b)
    for out in (x + y, y * x, em.ops.concat([x, y]), em.ops.where(x.astype("bool"), x, y)):
        assert str(out.dtype) == want


@pytest.mark.parametrize("a, scalar, want", [("bfloat16", 2.0, "bfloat16"), ("float16", 2.5, "float16"), ("int8", 3, "int8"),
                                             ("int32", 2.0, "float32"), ("bool", 2, "int32"), ("bool", 1.5, "float32"),
                                             ("float32", 1, "float32"), ("float32", 1j, "complex64"), ("uint8", 7, "uint8")])
def test_scalars_are_weak(backend, a, scalar, want):
    x = em.ones((2,)).astype(a)
    assert str((x + scalar).dtype) == str((scalar + x).dtype) == str((x * scalar).dtype) == want
    assert (x + scalar).astype("complex64").numpy()[0] == 1 + scalar


def test_scalars_that_do_not_fit_raise(backend):
    with pytest.raises(OverflowError, match="300 does not fit uint8"):
        em.ones((2,), dtype="uint8") + 300
    with pytest.raises(OverflowError, match="-1 does not fit uint8"):
        em.ones((2,), dtype="uint8") * -1


def test_integers_divide_and_grow_as_floats(backend):
    x = em.tensor([1, 2, 4])
    assert (x / 2).tolist() == [0.5, 1.0, 2.0] and str((x / 2).dtype) == "float32"
    assert str(em.ops.exp(x).dtype) == str(em.ops.mean(x).dtype) == "float32"
    assert str(em.ops.sum(em.ones((3,), dtype="int8")).dtype) == "int32"


def test_defaults(backend):
    assert str(em.tensor([1.5]).dtype) == "float32" and str(em.tensor([1]).dtype) == "int32"
    assert str(em.tensor([True]).dtype) == "bool" and str(em.tensor([1j]).dtype) == "complex64"
    assert str(em.tensor(np.ones(2, np.int8)).dtype) == "int8" and str(em.arange(3).dtype) == "int32"
    assert str(em.zeros((1,)).dtype) == "float32" and str(em.full((1,), True).dtype) == "bool"
    with pytest.raises(OverflowError, match="int64"):
        em.tensor([2 ** 40])


def test_mlx_refuses_float64_and_says_what_to_do():
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    with em.using("mlx"), pytest.raises(UnsupportedDtype, match="mlx: has no float64; use float32 here"):
        em.tensor(np.ones(2))
