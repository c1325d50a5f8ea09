"""Namespaces: code that knows a tensor only, and what an engine says of itself."""

import copy

import pytest

import ember_ml as em
from ember_ml import backend as engines
from ember_ml.errors import UnsupportedDtype


def softplus_of_distances(x):
    """Somebody else's code: it knows the array API, and nothing of Ember."""
    xp = x.__array_namespace__()
    grid = xp.arange(x.shape[0], device=x.device)
    far = xp.abs(xp.expand_dims(grid, axis=0) - xp.expand_dims(grid, axis=1))
    weight = xp.where(far == 0, xp.asarray(0.0), 1.0 / xp.astype(xp.maximum(far, xp.ones_like(far)), xp.float32))
    return xp.linalg.vector_norm(xp.log1p(xp.exp(weight @ x)) + xp.zeros(x.shape[-1]), axis=-1)


def test_other_peoples_code_stays_on_the_tensor_s_engine(backend):
    x = em.tensor([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]])
    with em.using("numpy"):                              # where em.using points does not matter: creation follows x
        y = softplus_of_distances(x)
        reference = softplus_of_distances(x.to("numpy"))
    assert y.device == x.device and y.tolist() == pytest.approx(reference.tolist(), rel=1e-6)


def test_one_namespace_an_engine(backend):
    x, y = em.ones((2,)), em.zeros((3,))
    xp = x.__array_namespace__(api_version="2025.12")
    assert xp is y.__array_namespace__() is em.namespace(backend) is copy.deepcopy(xp) and backend in repr(xp)
    if backend != "numpy":
        assert xp is not em.ones((2,), device="numpy").__array_namespace__()
    with pytest.raises(ValueError, match="api_version among 2021.12.*got '1999.12'"):
        x.__array_namespace__(api_version="1999.12")


def test_creation_takes_devices_with_and_without_the_engine(backend):
    xp = em.namespace(backend)
    short = xp.ones(2).device.partition(":")[2]
    with em.using("numpy"):
        for device in (None, backend, short, f"{backend}:{short}"):
            assert xp.full((2,), 7, device=device).device == f"{backend}:{short}"
            assert xp.fft.fftfreq(4, device=device).device == f"{backend}:{short}"


def test_info(backend):
    info = em.namespace(backend).__array_namespace_info__()
    assert info.capabilities() == {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 32}
    assert info.default_device() in info.devices() and all(d.startswith(backend) for d in info.devices())
    assert {k: str(d) for k, d in info.default_dtypes().items()} == {
        "real floating": "float32", "complex floating": "complex64", "integral": "int32", "indexing": "int32"}
    gone = {"mlx": {"float64", "complex128"}, "torch": {"uint16", "uint32", "uint64"}, "numpy": set()}[backend]
    every = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "complex64", "complex128"}
    assert set(info.dtypes()) == every - gone
    assert set(info.dtypes(kind="integral")) == {n for n in every - gone if "int" in n}
    assert set(info.dtypes(kind=("bool", "real floating"))) == {"bool", "float32", "float64"} - gone
    with em.using(backend):
        top = em.__array_namespace_info__()
        assert top.dtypes() == info.dtypes() and top.default_device() == info.default_device() and top.devices() == info.devices()


def test_a_dtype_that_the_engine_lacks_says_so():
    if not engines.installed("mlx"):
        pytest.skip("mlx is not installed")
    xp = em.namespace("mlx")
    with pytest.raises(UnsupportedDtype, match="mlx: has no float64; use float32 here"):
        xp.zeros(2, dtype=xp.float64)


def test_dtype_questions():
    assert em.result_type(em.int8, em.uint8) is em.int16 and em.result_type(em.float32, 2, 1j) is em.complex64
    assert em.can_cast(em.int8, em.int32) and not em.can_cast(em.float64, em.float32) and not em.can_cast(em.uint64, em.int64)
    assert em.isdtype(em.uint8, ("bool", "integral")) and em.isdtype(em.float32, em.float32) and not em.isdtype(em.bool, "numeric")
    assert em.finfo(em.complex64).eps == 2.0 ** -23 and em.finfo(em.bfloat16).max == 3.3895313892515355e38 and em.finfo(em.float64).dtype is em.float64
    assert (em.iinfo(em.int16).min, em.iinfo(em.int16).max, em.iinfo(em.uint8).bits) == (-32768, 32767, 8)
    for call, words in ((lambda: em.finfo(em.int8), "iinfo knows integers"), (lambda: em.iinfo(em.float32), "finfo knows"),
                        (lambda: em.isdtype(em.int8, "integer"), "one of bool, signed integer"), (lambda: em.result_type(1), "at least one tensor")):
        with pytest.raises((TypeError, ValueError), match=words):
            call()
