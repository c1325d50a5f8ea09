"""The first-use check: a kernel that disagrees or does not launch is left alone, told once, and remembered."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from ember_ml.kernels import DTYPES, MOE_COMBINE, KernelWarning, outcomes, selfcheck, trusted

MACHINE = ("metal", "mlx", "Apple M9", "0.99")


@pytest.fixture(autouse=True)
def nothing_checked_yet(monkeypatch):
    monkeypatch.setattr(selfcheck, "_outcomes", {})


def agreeing(dtype):
    return [("y", [1.0, -2.0], [1.0, -2.0 - 1e-6])]


def test_a_kernel_that_agrees_is_checked_once_in_every_dtype():
    asked = []
    for _ in range(2):
        assert trusted(MOE_COMBINE, *MACHINE, lambda dtype: asked.append(dtype) or agreeing(dtype))
    assert tuple(asked) == DTYPES
    (outcome,) = outcomes()
    assert (outcome.kernel, outcome.engine, outcome.device, outcome.reason) == ("moe_combine", "mlx", "Apple M9", "")


def refused(dtype):
    raise RuntimeError("Unable to build metal library\nprogram_source:5: error")


@pytest.mark.parametrize("compare, reason", [
    (refused, "float32: RuntimeError: Unable to build metal library"),
    (lambda d: [("y", [1.0, 0.0], [1.0, 0.1])], "y in float32 differs from the composite by 1.0e-01 of its largest"),
    (lambda d: [("y", [0.0], [0.1 if d == "bfloat16" else 0.0])], "y in bfloat16 differs"),
    (lambda d: [("y", [float("nan")], [1.0])], "differs from the composite by inf"),
    (lambda d: [("y", [1.0], [1.0]), ("d_weights", [1.0], [1.0, 2.0])], "d_weights in float32 differs"),
], ids=["launch error", "mismatch", "mismatch in one dtype", "not a number", "size"])
def test_a_kernel_that_fails_is_told_once_and_never_used(compare, reason):
    with pytest.warns(KernelWarning, match=r"moe_combine \(mlx 0.99, Apple M9\) is not used, the op runs"):
        assert not trusted(MOE_COMBINE, *MACHINE, compare)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trusted(MOE_COMBINE, *MACHINE, agreeing)
    (outcome,) = outcomes()
    assert reason in outcome.reason


def test_threads_that_come_first_together_are_told_once():
    asked = []

    def refused_slowly(dtype):
        asked.append(dtype)
        time.sleep(0.02)
        refused(dtype)

    with pytest.warns(KernelWarning) as told, ThreadPoolExecutor(4) as pool:
        found = [f.result() for f in [pool.submit(trusted, MOE_COMBINE, *MACHINE, refused_slowly) for _ in range(4)]]
    assert found == [False] * 4 and len(told) == len(asked) == len(outcomes()) == 1


@pytest.mark.parametrize("change", [(2, "Apple M10"), (3, "1.0"), (1, "torch")], ids=["device", "version", "engine"])
def test_another_machine_is_checked_anew(change):
    with pytest.warns(KernelWarning):
        assert not trusted(MOE_COMBINE, *MACHINE, refused)
    other = list(MACHINE)
    other[change[0]] = change[1]
    assert trusted(MOE_COMBINE, *other, agreeing)


def test_another_text_is_checked_anew(monkeypatch):
    with pytest.warns(KernelWarning):
        assert not trusted(MOE_COMBINE, *MACHINE, refused)
    monkeypatch.setattr(selfcheck, "digest", lambda language, stem: "0123456789ab")
    assert trusted(MOE_COMBINE, *MACHINE, agreeing)


def test_a_missing_text_is_a_failure_too(monkeypatch):
    def missing(language, stem):
        raise FileNotFoundError("expected the file metal/moe.metal")

    monkeypatch.setattr(selfcheck, "digest", missing)
    with pytest.warns(KernelWarning, match="expected the file metal/moe.metal"):
        assert not trusted(MOE_COMBINE, *MACHINE, agreeing)
