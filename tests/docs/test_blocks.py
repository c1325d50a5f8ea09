"""The code that README.md and the pages of docs/ show runs as it stands there."""

import re
import tomllib
from pathlib import Path

import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.adapters.run import AdapterConfig
from ember_ml.registry import from_dict
from tests.conftest import require_engine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [pytest.param(language, text, id=f"{page.stem}-{i}") for page in PAGES
          for i, (language, text) in enumerate(re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))]


@pytest.mark.parametrize("language, text", BLOCKS)
def test_a_block_runs(language, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert language in ("python", "toml"), "say how a block of this language is tried"
    if language == "toml":
        table = tomllib.loads(text)
        if "blocks" in table:
            Path("model.toml").write_text(text)
            with em.using(em.backend.get("numpy").outline()):      # shapes alone: the page's model is large
                assert nn.Model.from_config("model.toml").count() > 0
        else:                                              # a part of a run's file: what starts from another model
            assert from_dict(AdapterConfig, table["adapter"]).lora.rank > 0 and "file" in table["model"]
    elif text.startswith("@op("):
        compile(text, "README.md", "exec")                 # a declaration that Ember has already, and would refuse
    else:
        require_engine("mlx")                              # a page shows it
        with em.using("numpy"):
            model = nn.Model.from_config({"family": "transformer", "vocab_size": 16, "d_input": 8, "n_layer": 1, "heads": 2})
            exec(compile(text, "block", "exec"), {"em": em, "nn": nn, "model": model, "tokens": em.tensor([[1, 2, 3]])})
