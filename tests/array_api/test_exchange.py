"""DLPack both ways, asarray, and moving: what is shared, what is copied, what is refused."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import UnsupportedDtype


def shared(x, array) -> bool:
    """Whether a NumPy array lies in the tensor's memory."""
    return np.shares_memory(array, np.from_dlpack(x))


def test_out_of_a_tensor_without_a_copy(backend):
    x = em.tensor([1.0, 2.0, 3.0])
    assert shared(x, np.from_dlpack(x))
    assert x.__dlpack_device__() == (1, 0)


def test_into_a_tensor(backend):
    """Without a copy, but on MLX's CPU build, which imports by copying only."""
    array, copies = np.array([1, 2, 3], np.int32), backend == "mlx"
    x = em.from_dlpack(array)
    assert x.backend.name == backend and x.tolist() == [1, 2, 3] and shared(x, array) != copies
    assert not shared(em.from_dlpack(array, copy=True), array)
    if copies:
        with pytest.raises(BufferError, match="cannot use the memory of a ndarray on DLPack device \\(1, 0\\); pass copy=None or True"):
            em.from_dlpack(array, copy=False)
    else:
        assert shared(em.from_dlpack(array, copy=False), array)
    assert shared(em.from_dlpack(x, copy=False), np.from_dlpack(x))


@pytest.mark.parametrize("other", ["numpy", "torch", "mlx"])
def test_from_one_engine_to_another(backend, other):
    pytest.importorskip({"mlx": "mlx.core"}.get(other, other))
    x = em.tensor([[1.5, -2.0], [0.0, 4.0]])
    y = em.from_dlpack(x, device=other)
    assert y.backend.name == other and y.tolist() == x.tolist() and y.dtype is em.float32
    half = em.tensor([1.5, -2.25], dtype="bfloat16")
    moved = em.from_dlpack(half, device=other)
    assert moved.dtype is em.bfloat16 and moved.tolist() == [1.5, -2.25]


def test_dtypes_survive(backend):
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "complex64"):
        a = np.array([0, 1, 1]).astype(name)
        x = em.from_dlpack(a)
        assert str(x.dtype) == name and np.array_equal(np.from_dlpack(x), a)


def test_what_cannot_be_shared(backend):
    if backend == "mlx":                                 # it has no float64: neither shared nor silently cast
        with pytest.raises(UnsupportedDtype, match="has no float64"):
            em.from_dlpack(np.ones(2))
    with pytest.raises(TypeError, match="speaks DLPack, got list; use asarray"):
        em.from_dlpack([1, 2])


def test_asarray(backend):
    x = em.tensor([1.0, 2.0])
    same = em.namespace(backend).asarray(x, copy=False)
    x[0] = 5.0
    assert same is x and em.asarray(x, copy=True) is not x
    assert em.asarray([em.tensor(1), 2.5]).tolist() == [1.0, 2.5] and em.asarray([[em.tensor(1.0)], [2]]).dtype is em.float32
    assert em.asarray(np.ones((2, 1), np.float32)).shape == (2, 1) and em.asarray(True).dtype is em.bool
    assert em.asarray(3, dtype="float32").dtype is em.float32 and em.asarray(x, dtype=em.int32).tolist() == [5, 2]
    for call in (lambda: em.asarray([1.0], copy=False), lambda: em.asarray(x, dtype=em.int32, copy=False)):
        with pytest.raises(ValueError, match="copy"):
            call()


def test_to_device(backend):
    x = em.tensor([1.0])
    assert x.to_device(x.device).device == x.device and x.to_device("numpy").backend.name == "numpy"
    with pytest.raises(ValueError, match="stream=None"):
        x.to_device(x.device, stream=1)


def test_complex_is_not_cast_to_real(backend):
    with pytest.raises(TypeError, match="say which part"):
        em.astype(em.tensor([1j]), em.float32)
    assert em.astype(em.tensor([1.5]), "int32", copy=False, device="numpy").device == "numpy:cpu"
