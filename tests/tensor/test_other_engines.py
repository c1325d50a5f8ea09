"""Engines of other packages, announced by an entry point: one that offers what is asked works at once, another is told what it lacks."""

from functools import cache
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest

import ember_ml as em
from ember_ml import backend as engines
from ember_ml.backend import numpy as numpy_engine
from ember_ml.backend.base import BackendBase
from ember_ml.errors import BackendMissing, UnsupportedDevice
from ember_ml.tensor import DType


class Shelf(np.ndarray):
    """Arrays that no other engine takes for its own."""


def _on_shelf(fn):
    def run(*args, **kw):
        out = fn(*args, **kw)
        return tuple(map(_shelved, out)) if isinstance(out, tuple) else _shelved(out)
    return run


def _shelved(x):
    return x.view(Shelf) if isinstance(x, np.ndarray) else np.asarray(x).view(Shelf) if isinstance(x, np.generic) else x


class Shelves(BackendBase):
    """Exactly what `ember_ml.tensor.interfaces.backend` asks for beyond BackendBase, by NumPy."""

    array_types = (Shelf,)

    def __init__(self):
        reference = numpy_engine.backend
        table = {name: _on_shelf(fn) for name, fn in reference.table.items()}
        super().__init__("shelves", {d: n for d, n in reference.dtypes.items() if d.name != "bfloat16"}, table, numpy_engine.NumpyRuntime())
        self.weak_floats = self.inexact
        self.table["astype"] = self.astype

    def device_of(self, x):
        return "cpu"

    def astype(self, x, dtype: DType):
        return _shelved(np.asarray(x).astype(self.native_dtype(dtype)))

    def from_numpy(self, array, dtype, device):
        return _shelved(np.array(array, dtype=self.native_dtype(dtype) if dtype else None))

    def from_python(self, data, dtype, device):
        return self.from_numpy(numpy_engine.read_values(data, dtype), dtype, device)

    def to_numpy(self, x):
        return np.array(x)

    def to_device(self, x, device):
        return x

    def to_dlpack(self, x, **kw):
        return x.__dlpack__(**kw)

    def full(self, shape, value, dtype, device):
        return _shelved(np.full(shape, value, self.native_dtype(dtype)))

    def arange(self, start, stop, step, dtype, device):
        return _shelved(np.arange(start, stop, step).astype(self.native_dtype(dtype)))


class Bare(BackendBase):
    array_types = (Shelf,)

    def __init__(self):
        super().__init__("bare", {}, {}, object())


@pytest.fixture
def announced(monkeypatch):
    """Announces shelves, which is whole, bare, which lacks most, and gone, whose module there is not."""
    entries = [SimpleNamespace(name="shelves", value="shelves:Shelves", load=Shelves), SimpleNamespace(name="bare", value="bare:Bare", load=Bare),
               EntryPoint("gone", "no_such_package:backend", "ember_ml.backends")]
    monkeypatch.setattr(engines, "_announced", lambda: {e.name: e for e in entries})
    for name in ("names", "installed"):
        monkeypatch.setattr(engines, name, cache(getattr(engines, name).__wrapped__))
    yield
    for entry in entries:
        engines._loaded.pop(entry.name, None)


def test_an_engine_that_offers_what_is_asked_computes_and_differentiates(announced):
    x = em.tensor([1.0, 2.0, 4.0], device="shelves")
    assert isinstance(x.data, Shelf) and x.device == "shelves:cpu"
    loss, g = em.value_and_grad(lambda x: (em.ops.exp(x) * 0.5 + em.arange(3, device="shelves")).sum())(x)
    np.testing.assert_allclose(loss.item(), np.exp([1.0, 2.0, 4.0]).sum() / 2 + 3, rtol=1e-6)
    np.testing.assert_allclose(g.numpy(), np.exp([1.0, 2.0, 4.0]) / 2, rtol=1e-6)
    assert isinstance(g.data, Shelf)
    with em.using("shelves"):
        assert em.random.normal(em.random.key(0), (2,)).device == "shelves:cpu"


def test_native_arrays_find_their_engine_while_an_announced_one_is_not_loaded(announced):
    assert em.from_native(np.zeros(2)).device == "numpy:cpu"


def test_an_engine_that_lacks_something_is_told_what(announced):
    with pytest.raises(BackendMissing, match=r"backend 'bare': .*:Bare lacks .*weak_floats.*from_python.*runtime\.compiles.*"
                                             r"told in ember_ml\.tensor\.interfaces\.backend"):
        em.zeros((2,), device="bare")


def test_an_engine_that_does_not_load_leaves_the_others_alone(announced):
    with pytest.raises(BackendMissing, match="backend 'gone': no_such_package:backend does not load: ModuleNotFoundError"):
        em.zeros((2,), device="gone")
    assert "shelves" in em.available() and not {"gone", "bare"} & set(em.available())


def test_a_place_that_is_neither_engine_nor_device_is_told_both():
    with em.using("numpy"), pytest.raises(UnsupportedDevice, match=r"expected an engine \(numpy, mlx, torch, cupy.*\), .* or a device of numpy "
                                                                   r"\(cpu\); got 'jax'"):
        em.zeros((2,), device="jax")
