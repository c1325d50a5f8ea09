"""What `make array-api` came to and the failures that are known say the same; none is without its reason, and there are few."""

import json

import pytest

from tests.array_api.suite import COUNTS, by_module, module_of, xfails

#: the most failures that an engine may have
MOST = {"numpy": 25, "mlx": 25, "torch": 35, "cupy": 25, "torch-cuda": 35}
ON_A_CPU = ("numpy", "mlx", "torch")


@pytest.mark.parametrize("engine", MOST)
def test_each_failure_has_a_line_and_a_reason(engine):
    known, engines = xfails(engine), json.loads(COUNTS.read_text())["engines"]
    assert len(known) <= MOST[engine]
    assert all(test.startswith("array_api_tests/test_") and "::" in test and len(reason) > 10 for test, reason in known.items())
    if engine in ON_A_CPU or engine in engines:              # GPUs are not everywhere
        counted = engines[engine]
        assert counted["passed"] > 1290 and sum(m["passed"] for m in counted["modules"].values()) == counted["passed"]
        assert counted["failed"] <= MOST[engine] and (engine not in ON_A_CPU or len(known) == counted["failed"])
        for module, count in by_module(dict.fromkeys(known, "failed")).items():
            assert engine not in ON_A_CPU or count["failed"] == counted["modules"][module]["failed"], module


def test_modules_by_file():
    assert module_of("array_api_tests/test_linalg.py::test_inv") == "linalg"
    assert module_of("array_api_tests/test_sorting_functions.py::test_sort[x]") == "sorting"
    assert by_module({"a/test_fft.py::x": "passed", "a/test_fft.py::y": "failed"}) == {"fft": {"passed": 1, "failed": 1}}
