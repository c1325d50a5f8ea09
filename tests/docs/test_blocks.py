"""The code that README.md and the pages of docs/ show runs as it stands there."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.adapters.run import AdapterConfig
from ember_ml.ops import REGISTRY
from ember_ml.registry import from_dict, layers
from tests.conftest import require_engine

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [pytest.param(language, text, id=f"{page.stem}-{i}") for page in PAGES
          for i, (language, text) in enumerate(re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))]


@pytest.fixture
def as_before():
    """What a page declares is forgotten again: other tests go over all that there is."""
    tables = REGISTRY, layers._table
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before):
        table.clear()
        table.update(kept)


@pytest.mark.parametrize("language, text", BLOCKS)
def test_a_block_runs(language, text, tmp_path, monkeypatch, as_before):
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
            found = {"em": em, "nn": nn, "model": model, "tokens": em.tensor([[1, 2, 3]])}
            exec(compile(text, "block", "exec"), found)
            if "squareplus" in found:
                x = em.tensor([-3.0, 0.0, 2.0])
                _, slope = em.value_and_grad(lambda x: found["squareplus"](x).sum())(x)
                np.testing.assert_allclose(slope.numpy(), [0.5 - 1.5 / 13 ** 0.5, 0.5, 0.5 + 1 / 8 ** 0.5], rtol=1e-6)
            if "MovingAverage" in found:
                y, _ = nn.Block(1, layer="moving_average").layer(em.tensor([[[4.0], [8.0], [2.0]]]))
                np.testing.assert_allclose(y.numpy()[0, :, 0], [2.0, 5.0, 3.5], rtol=1e-6)
