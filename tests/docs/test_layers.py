"""Every registered layer has a page with all its sections; the pages in docs/layers are there and belong to layers that are."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ember_ml.registry import layers

ROOT = Path(__file__).parents[2]
MAKE = runpy.run_path(str(ROOT / "docs" / "make_layers.py"))


@pytest.mark.parametrize("name", layers.names())
def test_a_page_has_everything(name):
    text = MAKE["page"](name)
    for section in ("Formula", "State", "Shapes", "Cost", "Configuration", "Source"):
        body = text.partition(f"\n## {section}\n\n")[2].partition("\n## ")[0].strip()
        assert len(body) > 5, f"{name}: {section} is empty"


def test_the_folder_holds_a_page_a_layer():
    have = {p.stem for p in (ROOT / "docs" / "layers").glob("*.md")} - {"README"}
    assert have == set(layers.names()), "run: make docs"


@pytest.mark.slow
def test_the_folder_is_up_to_date(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "docs" / "make_layers.py"), str(tmp_path)], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    for page in tmp_path.glob("*.md"):
        assert page.read_text() == (ROOT / "docs" / "layers" / page.name).read_text(), f"{page.name}: run: make docs"


def test_labels_inside_sentences_are_found():
    told = MAKE["sections"]("y = x.\n\nArgs:\n    x: State: no.\n\nParameters: w. State: h (B,). Source: A 2020.")
    assert told == {"": "y = x.", "Parameters": "w.", "State": "h (B,).", "Source": "A 2020."}
