"""docs/support.md says what the registry and the kept results say."""

import json
import runpy
from pathlib import Path

import pytest

from ember_ml.ops import REGISTRY
from tests.conftest import require_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def make():
    for engine in ("torch", "mlx"):
        require_engine(engine)
    return runpy.run_path(str(ROOT / "docs" / "make_support.py"))


PAGE = (ROOT / "docs" / "support.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_is_up_to_date(make):
    assert PAGE == make["text"](), "run: make docs"


def test_every_op_has_a_line(make):
    lines = make["ops"]().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(REGISTRY)
    assert all(f"| `{name}` |" in PAGE for name in REGISTRY), "run: make docs"
    assert not any("**no**" in line for line in lines), "an engine can run an op in no way"


def test_cupy_s_table_is_read_off_its_text(make):
    assert {"erf", "erfinv", "add", "matmul"} <= make["tables"]()["cupy"]


def test_the_counts_of_the_public_suite_are_the_kept_ones(make):
    path = ROOT / "tests/array_api/counts.json"
    shown = make["array_api"]()
    if not path.exists():
        assert "make array-api" in shown
        return                                               # no run is kept: there are no counts to compare
    for name, kept in json.loads(path.read_text())["engines"].items():
        assert f"**{kept['passed']} / {kept['failed']}" in shown and f"**{kept['passed']} / {kept['failed']}" in PAGE and f"- {name} {kept['version']}" in shown
