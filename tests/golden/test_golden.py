"""Every golden case that has a builder, on every engine; which have to have one; and that the runner can fail."""

import copy

import pytest

from tests.conftest import ENGINES, require_engine
from tests.golden.case import DATA, LEFT_OUT, Case, find, left_out, lookup
from tests.golden.runner import run, run_all

CASES = find()
#: areas whose cases all have a builder, with their number
WHOLE = {"hf": 13, "hyena": 21, "liquid": 18, "mad": 34, "stripedhyena": 16, "torch": 18, "xlstm": 13}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [c for c in CASES if lookup(c)], ids=lambda c: c.key)
def test_case(case, engine):
    require_engine(engine)
    result = run(case, engine)
    assert result.passed, str(result)


def test_every_listed_case_is_there_and_has_a_builder():
    assert {area: sum(c.area == area for c in CASES) for area in WHOLE} == WHOLE
    missing = [c.key for c in CASES if c.area in WHOLE and lookup(c) is None and not left_out(c)]
    assert not missing, f"no builder for {', '.join(missing)}"


def test_what_is_left_out_is_listed_and_has_no_builder():
    out = [c.key for c in CASES if left_out(c)]
    assert out == ["hf/deepseek_v3", "hf/gpt2", "hf/gpt_neox"] and len(LEFT_OUT) == 3
    assert not [c.key for c in CASES if left_out(c) and lookup(c)]
    assert list(run_all(DATA / "hf" / "gpt2", ["numpy"])) == []


def altered(change) -> Case:
    """A private copy of the order-3 operator's case, changed."""
    case = Case(DATA / "hyena" / "hyena_operator_order3")
    case.meta = copy.deepcopy(case.meta)
    change(case)
    return case


def add(name: str, amount: float):
    def change(case: Case):
        case.io[name].flat[0] += amount
    return change


@pytest.mark.parametrize("name, amount", [("y", 0.01), ("y_f64", 1e-6), ("grad.input.u", 1.0),
                                          ("grad.param.short_filter.weight", 1.0)])
def test_a_difference_beyond_the_tolerance_fails(name, amount):
    result = run(altered(add(name, amount)), "numpy")
    assert not result.passed and result.worst > 1.0
    assert result.where == name.replace("_f64", " (float64)")


@pytest.mark.parametrize("name", ["y", "y_f64", "grad.param.filter_fn.bias"])
def test_a_nan_fails(name):
    result = run(altered(add(name, float("nan"))), "numpy")
    assert not result.passed


def test_a_wrong_shape_and_a_missing_output_fail_with_a_reason():
    def longer(case: Case):
        case.io["y"] = case.io["y"].repeat(2, axis=1)

    def more(case: Case):
        case.meta["outputs"] = ["y", "other"]
        case.io["other"] = case.io["y"]

    assert "shape (2, 64, 16)" in run(altered(longer), "numpy").fault
    assert "lack ['other']" in run(altered(more), "numpy").fault


def test_a_case_without_a_builder_fails():
    def rename(case: Case):
        case.name = "no_such_thing"

    result = run(altered(rename), "numpy")
    assert not result.passed and "no builder" in result.fault


def test_an_input_longer_than_l_max_is_cut():
    def shorter(case: Case):
        case.config["l_max"] = 24
        for name in ("pos_emb.t", "pos_emb.z"):
            case.weights["filter_fn." + name] = case.weights["filter_fn." + name][:, :24]
        for name in ("y", "y_f64", "cot.y"):                # causal: the first outputs do not know what follows
            case.io[name] = case.io[name][:, :24]
        case.meta["gradients"] = {"available": False}

    result = run(altered(shorter), "numpy")
    assert result.passed, str(result)
