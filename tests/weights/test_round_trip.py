"""What is saved on one engine is loaded on every other, and by other libraries, bit for bit."""

import json
import os
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import ember_ml as em
from ember_ml import weights
from ember_ml.errors import UnsupportedDtype, WeightsError

ENGINES = ("numpy", "torch", "mlx")
NAMES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
         "float16", "bfloat16", "float32", "complex64")
SHAPES = ((), (1,), (3, 5), (0,), (2, 0, 3), (2, 3, 4))


def arrays() -> dict[str, np.ndarray]:
    """Every dtype in every shape; the bits are random, so that NaNs with payload and subnormals are among them."""
    rng = np.random.default_rng(7)
    out = {}
    for name in NAMES:
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        for shape in SHAPES:
            if name == "bool":
                out[f"{name}.{len(out)}"] = rng.integers(0, 2, shape).astype(bool)
            else:
                raw = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
                out[f"{name}.{len(out)}"] = np.frombuffer(raw, dtype).reshape(shape)
    return out


ARRAYS = arrays()


def tensors(engine: str) -> dict:
    return {name: em.tensor(array, device=engine) for name, array in ARRAYS.items()}


def assert_same_bits(found: dict, expected: dict[str, np.ndarray]):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape and str(found[name].dtype) == array.dtype.name, name
        assert np.asarray(found[name]).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("target", ENGINES)
def test_saved_on_one_engine_loads_on_another(backend, target, tmp_path):
    path = tmp_path / "w.safetensors"
    if target not in em.available():
        pytest.skip(f"engine {target!r} is not installed")
    weights.save(path, tensors(backend), {"d_model": 64, "layers": ["hyena", None]}, {"step": "3"})
    found, config, metadata = weights.load(path, device=target)
    assert_same_bits(found, ARRAYS)
    assert {t.device.partition(":")[0] for t in found.values()} == {target}
    assert list(found) == list(ARRAYS)
    assert config == {"d_model": 64, "layers": ["hyena", None]} and metadata == {"step": "3"}


def test_every_engine_writes_the_same_bytes(backend, tmp_path):
    weights.save(tmp_path / "a", tensors(backend), {"a": 1}, {"x": "1", "y": "2"})
    weights.save(tmp_path / "b", tensors("numpy"), {"a": 1}, {"x": "1", "y": "2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_current_engine_is_the_default(backend, tmp_path):
    weights.save(tmp_path / "w", {"x": em.ones(2)})
    assert weights.load(tmp_path / "w")[0]["x"].device.startswith(backend)


def test_strided_tensors_are_stored_in_order(backend, tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = em.tensor(rows)
    weights.save(tmp_path / "w", {"turned": em.ops.swap_axes(x), "picked": x[:, ::2]})
    expected = {"turned": np.ascontiguousarray(rows.T), "picked": np.ascontiguousarray(rows[:, ::2])}
    assert_same_bits(weights.load(tmp_path / "w")[0], expected)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_a_lazily_conjugated_tensor_is_stored_as_its_values(backend, tmp_path):
    import torch

    z = torch.tensor([1 + 2j, -3 - 4j], dtype=torch.complex64).conj()
    weights.save(tmp_path / "w", {"z": em.from_native(z), "im": em.from_native(z.imag)})
    found = weights.load(tmp_path / "w", device="numpy")[0]
    assert found["z"].tolist() == [1 - 2j, -3 + 4j] and found["im"].tolist() == [-2.0, 4.0]


def test_the_loaded_tensors_do_not_hang_on_the_file(backend, tmp_path):
    path = tmp_path / "w"
    weights.save(path, {"x": em.tensor([1.0, 2.0])})
    found = weights.load(path)[0]
    with path.open("r+b") as f:
        f.seek(-8, os.SEEK_END)
        f.write(b"\xff" * 8)
    assert found["x"].tolist() == [1.0, 2.0]
    found["x"][0] = 5.0
    assert found["x"].tolist() == [5.0, 2.0]


def test_tied_tensors_are_stored_once_and_tied_again(backend, tmp_path):
    shared, equal = em.tensor([1.0, 2.0]), em.tensor([1.0, 2.0])
    weights.save(tmp_path / "w", {"embedding.weight": shared, "copy": equal, "head.weight": shared, "third": shared})
    assert safetensors.numpy.load_file(tmp_path / "w").keys() == {"embedding.weight", "copy"}
    found, config, metadata = weights.load(tmp_path / "w")
    assert found.keys() == {"embedding.weight", "copy", "head.weight", "third"}
    assert found["head.weight"] is found["embedding.weight"] is found["third"]
    assert found["copy"] is not found["embedding.weight"]
    assert config == {} and metadata == {}


def test_nothing_is_a_file_too(backend, tmp_path):
    weights.save(tmp_path / "w", {})
    assert weights.load(tmp_path / "w") == ({}, {}, {})


def test_harmless_names_are_only_names(backend, tmp_path):
    names = ["", "../x", "/etc/passwd", "a b", 'quo"te\\', "größe.重み", "\n\0", "format"]
    weights.save(tmp_path / "w", {name: em.tensor([float(i)]) for i, name in enumerate(names)})
    found = weights.load(tmp_path / "w")[0]
    assert {name: t.tolist() for name, t in found.items()} == {name: [float(i)] for i, name in enumerate(names)}
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_each_tensor_begins_at_a_multiple_of_its_item_size(tmp_path):
    weights.save(tmp_path / "w", tensors("numpy"))
    data = (tmp_path / "w").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "ember", "version": "1"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % ARRAYS[name].dtype.itemsize == 0, name


# Other libraries


def test_safetensors_reads_our_files(backend, tmp_path):
    weights.save(tmp_path / "w", tensors(backend), {"a": [1, 2]}, {"step": "3"})
    assert_same_bits(safetensors.numpy.load_file(tmp_path / "w"), ARRAYS)
    with safetensors.safe_open(tmp_path / "w", "np") as f:
        assert f.metadata() == {"format": "ember", "version": "1", "config": '{"a": [1, 2]}', "step": "3"}


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_torch_reads_our_files(backend, tmp_path):
    import torch
    from safetensors.torch import load_file

    weights.save(tmp_path / "w", tensors("numpy"))
    found = load_file(tmp_path / "w")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype is getattr(torch, array.dtype.name) and tuple(found[name].shape) == array.shape
        assert found[name].reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes(), name


@pytest.mark.parametrize("backend", ["mlx"], indirect=True)
def test_mlx_reads_our_files(backend, tmp_path):
    import mlx.core as mx

    weights.save(tmp_path / "w.safetensors", tensors("numpy"))
    found = mx.load(str(tmp_path / "w.safetensors"))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        dtype = mx.bool_ if array.dtype.name == "bool" else getattr(mx, array.dtype.name)
        assert found[name].dtype == dtype and found[name].shape == array.shape
        bits = found[name].view(mx.uint16) if dtype == mx.bfloat16 else found[name]
        assert np.array(bits).tobytes() == array.tobytes(), name


def test_we_read_files_of_safetensors(backend, tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "w", metadata={"format": "np", "version": "9"})
    found, config, metadata = weights.load(tmp_path / "w")
    assert_same_bits(found, ARRAYS)
    assert config == {} and metadata == {"format": "np", "version": "9"}


def test_we_read_files_of_torch(backend, tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({name: t.data for name, t in tensors("torch").items()}, tmp_path / "w")
    found, config, metadata = weights.load(tmp_path / "w")
    assert_same_bits(found, ARRAYS)
    assert config == {} and metadata == {}


def test_we_read_files_of_mlx(backend, tmp_path):
    mx = pytest.importorskip("mlx.core")
    path = tmp_path / "w.safetensors"
    mx.save_safetensors(str(path), {name: t.data for name, t in tensors("mlx").items()})
    assert_same_bits(weights.load(path)[0], ARRAYS)


def test_we_read_what_is_not_aligned(backend, tmp_path, monkeypatch):
    engine, aligned = em.zeros(1).backend, []
    real = engine.from_numpy

    def from_numpy(array, *args):
        aligned.append(array.flags.aligned)
        return real(array, *args)

    monkeypatch.setattr(engine, "from_numpy", from_numpy)
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                         "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}).encode()
    header += b" " * (-len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + b"\x05" + np.array([1.5, -2.5], np.float32).tobytes()
    (tmp_path / "w").write_bytes(data)
    found = weights.load(tmp_path / "w")[0]
    assert found["a"].tolist() == [5] and found["b"].tolist() == [1.5, -2.5]
    assert aligned == [True, True]                       # engines may read wide words, which must lie straight


def test_float64_of_others_loads_where_the_engine_has_it(backend, tmp_path):
    path = tmp_path / "w"
    values = np.array([1 / 3, -0.0])
    safetensors.numpy.save_file({"layer.x": values}, path)
    if backend == "mlx":
        with pytest.raises(WeightsError, match="'layer.x': mlx has no float64; load the file on the numpy or torch"):
            weights.load(path)
    else:
        assert_same_bits(weights.load(path)[0], {"layer.x": values})


@pytest.mark.parametrize("dtype, fix", [("float64", "float32"), ("complex128", "complex64")])
def test_float64_is_not_saved(dtype, fix, tmp_path):
    x = em.tensor(np.ones(2, dtype), device="numpy")
    with pytest.raises(UnsupportedDtype, match=rf"tensor 'a\.b': {dtype} cannot be saved.*astype\('{fix}'\)"):
        weights.save(tmp_path / "w", {"ok": em.tensor([1.0]), "a.b": x})
    assert list(tmp_path.iterdir()) == []


def test_memory_holds_one_tensor_at_a_time(tmp_path):
    """Saving 16 tensors of 1 MB takes 1 MB, not 16; the host copies are what tracemalloc sees of NumPy."""
    import tracemalloc

    many = {str(i): em.zeros((2 ** 18,), device="numpy") for i in range(16)}
    tracemalloc.start()
    try:
        weights.save(tmp_path / "w", many)
        saved = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = weights.load(tmp_path / "w", device="numpy")[0]
        loaded = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert saved < 2.5 * 2 ** 20 and loaded < 17 * 2 ** 20 and len(found) == 16


def test_no_engine_is_imported_for_a_file_of_another(tmp_path):
    import subprocess

    weights.save(tmp_path / "w", tensors("numpy"))
    code = (f"import sys; from ember_ml import weights; weights.load({str(tmp_path / 'w')!r}, 'numpy'); "
            "sys.exit(' '.join({'torch', 'mlx', 'cupy', 'safetensors'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.returncode == 0, done.stderr
