"""The first-use check: a form of a kernel that disagrees or does not launch is left alone, told once, and remembered."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from ember_ml.kernels import DTYPES, MOE_COMBINE, KernelWarning, outcomes, selfcheck, trusted

MACHINE = ("metal", "mlx", "Apple M9", "0.99")


@pytest.fixture(autouse=True)
def nothing_checked_yet(monkeypatch):
    monkeypatch.setattr(selfcheck, "_outcomes", {})


def agreeing():
    return [("y", 1e-6)]


def refused():
    raise RuntimeError("Unable to build metal library\nprogram_source:5: error")


def trust(compare, form="rows of 8", dtype="float32", machine=MACHINE):
    return trusted(MOE_COMBINE, form, dtype, *machine, compare)


def test_a_form_that_agrees_is_checked_once_in_each_dtype():
    asked = []
    for dtype in DTYPES * 2:
        assert trust(lambda: asked.append(dtype) or agreeing(), dtype=dtype)
    assert tuple(asked) == DTYPES and [o.dtype for o in outcomes()] == asked
    first = outcomes()[0]
    assert (first.kernel, first.form, first.engine, first.device, first.reason) == ("moe_combine", "rows of 8", "mlx", "Apple M9", "")


@pytest.mark.parametrize("compare, reason", [
    (refused, "RuntimeError: Unable to build metal library"),
    (lambda: [("y", 0.1)], "y differs from the composite by 1.0e-01 of its largest element, allowed are 1.0e-05"),
    (lambda: [("y", float("inf"))], "differs from the composite by inf"),
    (lambda: [("y", float("nan"))], "differs from the composite by nan"),
    (lambda: [("y", 0.0), ("d_weights", 1.1e-5)], "d_weights differs"),
], ids=["launch error", "mismatch", "sizes", "not a number", "second output"])
def test_a_form_that_fails_is_told_once_and_never_used(compare, reason):
    with pytest.warns(KernelWarning, match=r"moe_combine \(mlx 0.99, Apple M9\) is not used for rows of 8, float32, the op runs"):
        assert not trust(compare)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trust(agreeing)
    (outcome,) = outcomes()
    assert reason in outcome.reason


def test_other_forms_and_dtypes_stay_in_use():
    with pytest.warns(KernelWarning, match="rows of 8, float32"):
        assert not trust(refused)
    assert trust(agreeing, form="rows of 16") and trust(agreeing, dtype="float16")
    with pytest.warns(KernelWarning, match="rows of 32, float32"):
        assert not trust(refused, form="rows of 32")


def test_threads_that_come_first_together_are_told_once():
    asked = []

    def refused_slowly():
        asked.append(1)
        time.sleep(0.02)
        refused()

    with pytest.warns(KernelWarning) as told, ThreadPoolExecutor(4) as pool:
        found = [f.result() for f in [pool.submit(trust, refused_slowly) for _ in range(4)]]
    assert found == [False] * 4 and len(told) == len(asked) == len(outcomes()) == 1


@pytest.mark.parametrize("change", [(2, "Apple M10"), (3, "1.0"), (1, "torch")], ids=["device", "version", "engine"])
def test_another_machine_is_checked_anew(change):
    with pytest.warns(KernelWarning):
        assert not trust(refused)
    other = list(MACHINE)
    other[change[0]] = change[1]
    assert trust(agreeing, machine=other)


def test_another_text_is_checked_anew(monkeypatch):
    with pytest.warns(KernelWarning):
        assert not trust(refused)
    monkeypatch.setattr(selfcheck, "digest", lambda language, stem: "0123456789ab")
    assert trust(agreeing)


def test_a_missing_text_is_a_failure_too(monkeypatch):
    def missing(language, stem):
        raise FileNotFoundError("expected the file metal/moe.metal")

    monkeypatch.setattr(selfcheck, "digest", missing)
    with pytest.warns(KernelWarning, match="expected the file metal/moe.metal"):
        assert not trust(agreeing)


def test_a_check_may_ask_for_another_kernel():
    """As a composite does."""
    assert trust(lambda: agreeing() if trust(agreeing, form="inner") else refused())
