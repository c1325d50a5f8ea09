"""torch on Apple's GPUs: every row of the ops where there is one, and what is said of dtypes and devices that are not there."""

import pytest

import ember_ml as em
from ember_ml.errors import UnsupportedDevice, UnsupportedDtype
from ember_ml.parity.cases import CASES
from ember_ml.parity.ops import holds, op_rows
from tests.conftest import require_engine
from tests.ops.rows import check


@pytest.fixture(scope="module")
def torch():
    require_engine("torch")
    return pytest.importorskip("torch")


@pytest.mark.parametrize("part", range(8))
def test_rows(torch, part):
    if not torch.backends.mps.is_available():
        pytest.skip("torch finds no Apple GPU here")
    check([row for case in CASES[part::8] for row in op_rows(case, "torch:mps")])


def test_no_apple_gpu(torch, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UnsupportedDevice, match="finds no Apple GPU; use 'torch:cpu'"):
        em.ones((2,), device="torch:mps")


def test_dtypes_that_an_apple_gpu_lacks(torch, monkeypatch):
    """Told before torch is asked, so that it can be tested anywhere."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for call in (lambda: em.zeros((2,), "float64", device="torch:mps"), lambda: em.tensor([1.0], dtype="float64", device="torch:mps"),
                 lambda: em.arange(3, dtype="float64", device="torch:mps"), lambda: em.ones((2,), "float64", device="torch:cpu").to("torch:mps")):
        with pytest.raises(UnsupportedDtype, match="no float64; use float32 there, or the device 'torch:cpu'"):
            call()
    assert not holds("torch:mps", "complex128") and holds("torch:mps", "complex64") and holds("torch:cpu", "float64")
