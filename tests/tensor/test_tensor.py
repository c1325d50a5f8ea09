"""EmberTensor: exchange, value semantics, engines side by side, and the errors of their misuse."""

import subprocess
import sys
import threading

import numpy as np
import pytest

import ember_ml as em
from ember_ml import backend as engines
from ember_ml.errors import BackendMismatch, BackendMissing, ShapeError, UnsupportedDevice

DTYPES = ["bool", "int8", "int32", "int64", "uint8", "uint32", "float16", "bfloat16", "float32", "complex64"]


def test_python_and_numpy_exchange(backend):
    x = em.tensor([[1.0, 2.0], [3.0, 4.5]])
    assert x.shape == (2, 2) and x.ndim == 2 and x.size == 4 and x.nbytes == 16 and len(x) == 2
    assert x.tolist() == [[1.0, 2.0], [3.0, 4.5]] and np.asarray(x).dtype == np.float32
    assert [r.tolist() for r in x] == x.tolist() and x.T.shape == (2, 2) and x.device.startswith(backend)
    assert float(em.tensor(2.5)) == 2.5 and int(em.tensor(3)) == 3 and bool(em.tensor(True)) and [10, 20][em.tensor(1)] == 20
    with pytest.raises(ValueError, match="one element, got shape \\(2, 2\\)"):
        x.item()
    with pytest.raises(TypeError, match="at least one axis"):
        len(em.tensor(1.0))
    assert "4.5" in repr(x) and repr(em.zeros((1001,))).startswith("EmberTensor(shape=(1001,)")


def test_dlpack_leads_out(backend):
    x = em.tensor([1.0, 2.0, 3.0])
    assert np.from_dlpack(x).tolist() == [1.0, 2.0, 3.0]


def test_numpy_data_is_copied(backend):
    a = np.ones(3, np.float32)
    x = em.tensor(a)
    a[0] = 9.0
    assert x.tolist() == [1.0, 1.0, 1.0]
    out = x.numpy()
    out[1] = 7.0
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_no_tensor_is_a_view_of_another(backend):
    x = em.tensor([[1.0, 2.0], [3.0, 4.0]])
    row, turned, same = x[0], x.T, x
    x[0, 0] = 50.0
    assert row.tolist() == [1.0, 2.0] and turned[0, 0].item() == 1.0 and same[0, 0].item() == 50.0


@pytest.mark.parametrize("name", DTYPES)
def test_moving_between_engines_keeps_every_bit(backend, name):
    x = em.tensor(np.array([[0, 1], [3, 100]])).astype(name)
    for other in [n for n in ("numpy", "torch", "mlx") if engines.installed(n)]:
        y = x.to(other)
        assert y.backend.name == other and y.dtype is x.dtype and y.shape == x.shape
        assert y.to(backend).numpy().tobytes() == x.numpy().tobytes()


def test_mixing_engines_names_both_and_the_fix():
    with em.using("numpy"):
        x = em.ones((2,))
    y = x.to("torch:cpu")
    for call in (lambda: x + y, lambda: em.ops.where(x > 0, x, y), lambda: em.ops.concat([y, x])):
        with pytest.raises(BackendMismatch, match="numpy and torch|torch and numpy") as e:
            call()
        assert "x.to(" in str(e.value) and isinstance(e.value, TypeError)


@pytest.mark.parametrize("call, words", [
    (lambda: em.ones((2, 3)) + em.ones((4,)), "add: .*x=float32\\[2, 3\\], y=float32\\[4\\]"),
    (lambda: em.ops.matmul(em.ones((2, 3)), em.ones((4, 2))), "matmul: .*float32\\[2, 3\\]"),
    (lambda: em.ops.reshape(em.ones((2, 3)), (4, 2)), "reshape: "),
    (lambda: em.ops.concat([em.ones((2, 3)), em.ones((3, 2))]), "concat: "),
    (lambda: em.ops.split(em.ones((5,)), 2), "split: expected lengths that add up to 5"),
    (lambda: em.ops.squeeze(em.ones((2,)), 0), "squeeze: expected an axis of length 1"),
    (lambda: em.tensor([[1, 2], [3]]), "equal lengths"),
    (lambda: em.zeros((-1,)), "lengths of at least 0"),
    (lambda: em.ops.linear(em.ones((2, 3)), em.ones((4, 5))), "d_in\\) = \\(..., 5\\), got \\(2, 3\\)"),
    (lambda: em.ops.cross_entropy(em.ones((2, 3)), em.tensor([1, 2, 3])), "labels of shape \\(2,\\)"),
    (lambda: em.ops.topk(em.ones((3,)), 4), "1 <= k <= 3"),
    (lambda: em.ops.short_conv(em.ones((2, 3)), em.ones((3, 2))), "x \\(B, D, L\\)"),
    (lambda: em.ops.moe_combine(em.ones((4, 2)), em.tensor([[0, 1]]), em.ones((2, 1))), "weights \\(T, K\\)"),
])
def test_shape_errors_say_what_came(backend, call, words):
    with pytest.raises(ShapeError, match=words):
        call()


def test_raw_arrays_are_refused_with_a_hint(backend):
    x = em.ones((2,))
    for call in (lambda: x + np.ones(2), lambda: np.ones(2) + x, lambda: x * [1.0, 2.0], lambda: x + "a"):
        with pytest.raises(TypeError, match="em.tensor"):
            call()
    with pytest.raises(TypeError, match="at least one EmberTensor"):
        em.ops.exp(np.ones(2))
    with pytest.raises(TypeError, match="misses the argument 'indices'; it is called as scatter_add"):
        em.ops.scatter_add(x, updates=x)


def test_native_arrays_are_wrapped_without_a_copy(backend):
    x = em.ones((2,))
    assert em.from_native(x.data).data is x.data
    with pytest.raises(TypeError, match="array of one of numpy"):
        em.from_native([1, 2])


def test_choice_of_the_engine(monkeypatch):
    assert em.zeros((1,)).backend.name == ("torch" if engines.installed("torch") else "numpy") or sys.platform == "darwin"
    monkeypatch.setenv("EMBER_BACKEND", "numpy")
    assert em.zeros((1,)).backend.name == "numpy"
    with em.using("torch:cpu"):
        assert em.zeros((1,)).device == "torch:cpu"
        assert em.zeros((1,), device="numpy").backend.name == "numpy"
        assert em.zeros((1,), like=em.zeros((1,), device="numpy")).backend.name == "numpy"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(em.zeros((1,)).backend.name))
        thread.start()
        thread.join()
        assert seen == ["numpy"]                             # another thread has its own choice
    assert em.zeros((1,)).backend.name == "numpy"


def test_unknown_and_missing_engines(monkeypatch):
    with pytest.raises(BackendMissing, match="one of numpy, mlx, torch, cupy.*got 'jax'"):
        engines.get("jax")
    monkeypatch.setattr(engines, "installed", lambda name: False)
    monkeypatch.setattr(engines, "_loaded", {})
    with pytest.raises(BackendMissing, match=r'pip install "ember-ml\[torch\]"') as e:
        engines.get("torch")
    assert isinstance(e.value, ImportError)


def test_cupy_without_a_gpu_says_so():
    cupy = pytest.importorskip("cupy", reason="cupy is not installed (it is for Linux only)")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        with pytest.raises(BackendMissing, match="finds no NVIDIA GPU"):
            engines.get("cupy")
        assert "cupy" not in em.available()
    else:
        pytest.skip("there is a GPU: tests/kernels runs on it")


@pytest.mark.parametrize("device", ["numpy:gpu", "torch:tpu", "mlx:banana"])
def test_unknown_devices(device):
    if not engines.installed(device.split(":")[0]):
        pytest.skip("engine is not installed")
    with pytest.raises(UnsupportedDevice, match=device.split(":")[1]):
        em.zeros((1,), device=device)


def test_importing_ember_loads_no_engine_but_numpy():
    code = "import sys, ember_ml; print([m for m in ('mlx', 'torch', 'cupy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_support_lists_every_op_and_engine():
    table = em.ops.support()
    assert set(table) == set(em.ops.REGISTRY)
    assert table["add"]["numpy"] == "native" and table["depthwise_rows"]["numpy"] == "composite"
