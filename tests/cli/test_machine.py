"""What `ember doctor` advises, and the facts it rests on."""

import platform
import re
import sys

import pytest

from ember_ml import backend as engines
from ember_ml.backend.base import machine_memory
from ember_ml.cli import machine
from tests.conftest import require_engine

FOUND = {"engines": {"mlx": {"blas": "OpenBLAS"}}, "devices": {"mlx:cpu": {"gflops": 2.0}}, "compilers": {"c++": "/usr/bin/c++"}}


@pytest.mark.parametrize("change, words", [
    ({}, None),
    ({"engines": {"mlx": {"blas": "reference"}}}, "LD_PRELOAD=libopenblas.so.0"),
    ({"compilers": {"c++": None}}, "Install g\\+\\+ or clang"),
    ({"compilers": {"c++": None}, "devices": {"numpy:cpu": {}}}, None),
])
def test_advice(change, words, monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda name: True)
    said = machine.advice({**FOUND, **change})
    if words is None:
        assert said == []
    else:
        (line,) = said
        assert re.search(words, line)


def test_advice_where_numpy_is_alone(monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda name: name == "numpy")
    (line,) = machine.advice({"engines": {}, "devices": {"numpy:cpu": {}}, "compilers": {"c++": None}})
    assert 'pip install "ember-ml[torch]"' in line


def test_memory_of_devices(backend):
    engine = engines.get(backend)
    assert 2**28 < machine_memory() < 2**45
    assert all(2**28 < engine.memory(device) < 2**45 for device in engine.devices())


def test_the_blas_under_mlx_is_told():
    require_engine("mlx")
    found = engines.get("mlx").runtime.describe()["blas"]
    expected = {"Darwin": {"Accelerate"}, "Linux": {"reference", "OpenBLAS", "MKL", "BLIS"}}.get(platform.system())
    assert expected is None or found in expected


def test_what_convolves_on_a_cpu_is_told(monkeypatch):
    torch = pytest.importorskip("torch", reason="needs torch")
    from ember_ml.backend.torch.cpu import mkl
    direct = sys.platform == "linux" and platform.machine() == "x86_64" and torch.backends.mkl.is_available()
    told = engines.get("torch").runtime.describe
    assert ("MKL, called directly" in told()["convolution"]) == direct
    monkeypatch.setattr(mkl, "works", lambda: False)
    assert "torch.fft" in told()["convolution"]


def test_a_rate_of_products():
    assert 0.01 < machine.gflops("numpy:cpu", size=64) < 1e5
