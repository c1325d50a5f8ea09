"""`ember report`: from a run of a model with experts to one page that holds its images, and what a browser makes of it."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from ember_ml.cli import report
from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training import RunFolder, Trainer, TrainingConfig
from ember_ml.nn.pipeline.training.objectives import next_token_loss
from tests.nn import _tiny
import ember_ml as em


@pytest.fixture
def folder(tmp_path):
    """A short run whose second block is a mixture of experts."""
    run = RunFolder(tmp_path / "run")
    run.config.write_text("")
    rng = np.random.default_rng(0)
    batches = rng.integers(0, _tiny.VOCAB, size=(6, 2, _tiny.BATCH, _tiny.LENGTH)).astype(np.int32)
    with em.using("numpy"):
        Trainer(_tiny.model(), next_token_loss, _tiny.optimizer(), lambda i: tuple(batches[i]), TrainingConfig(6, log_every=1), folder=run).train()
    return run


def test_what_is_logged(folder):
    rows = folder.rows()
    assert [len(r[f"{_tiny.ROUTER}.load"]) for r in rows] == [4] * 6
    assert all(sum(r[f"{_tiny.ROUTER}.load"]) == pytest.approx(1.0, abs=1e-5) for r in rows)
    assert f"{_tiny.ROUTER}.coactivation" not in rows[0] and np.shape(rows[-1][f"{_tiny.ROUTER}.coactivation"]) == (4, 4)
    assert np.sum(rows[-1][f"{_tiny.ROUTER}.classes"]) == 2 * _tiny.BATCH * _tiny.LENGTH
    assert 0.0 <= rows[-1][f"{_tiny.ROUTER}.information"] <= 1.0


def test_the_page_holds_everything(folder):
    page = report.run(folder.path, None).read_text()
    images = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert [title for title, _ in images] == ["load over time", "entropy and coefficient of variation", "expert by class of token",
                                              "co-activation"]
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in images)
    assert _tiny.ROUTER in page and not re.search(r'(src|href)="(?!data:)', page)


def test_a_run_without_experts(folder):
    rows = [{"step": 1, "loss": 1.0}]
    folder.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(ConfigError, match="expected a run of a model with a layer 'moe'"):
        report.run(folder.path, None)


@pytest.mark.slow
def test_a_browser_draws_it(folder, tmp_path):
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium on the PATH; Debian has it in the package chromium")
    page = report.run(folder.path, None)
    ask = "<script>document.title = JSON.stringify([...document.images].map(i => [i.alt, i.complete, i.naturalWidth]))</script>"
    shown = tmp_path / "shown.html"
    shown.write_text(page.read_text().replace("</body>", f"<script>addEventListener('load', () => {{ {ask[8:-9]} }})</script></body>"))
    common = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*common, "--virtual-time-budget=4000", "--dump-dom", shown.as_uri()], capture_output=True, text=True, timeout=120)
    assert dom.returncode == 0, dom.stderr
    images = json.loads(re.search(r"<title>(.*?)</title>", dom.stdout, re.DOTALL)[1].replace("&quot;", '"'))
    assert len(images) == 4 and all(complete and width > 300 for _, complete, width in images)
