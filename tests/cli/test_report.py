"""`ember report`: from a run of a model with experts to one page that holds its images, and what a browser makes of it."""

import base64
import hashlib
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
    assert [title for title, _ in images] == ["curves", "load over time", "entropy and coefficient of variation", "expert by class of token",
                                              "co-activation"]
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in images)
    assert _tiny.ROUTER in page and not re.search(r'(src|href)="(?!data:)', page)


def test_the_page_of_a_run_of_the_command(command, job):
    assert command("train", "job.toml", "--out", "run", "--backend", "numpy").code == 0
    before = command("report", "run", "--out", "before.html")
    assert before.code == 0 and before.out.strip() == "before.html"
    assert command("parity", "run", "--length", 8).code == 0
    assert json.loads(command("report", "run", "--json").out) == {"page": "run/report.html"}
    page, summary = (job / "run/report.html").read_text(), json.loads((job / "run/summary.json").read_text())
    assert "Parity" in page and "Parity" not in (job / "before.html").read_text()
    assert f"<td>{summary['held_out']['bits']:.4f}</td>" in page and summary["fingerprint"][0]["sha256"] in page
    for name, value in summary["baselines"].items():
        assert f"<td>{name}</td><td>{value:.4f}</td>" in page
    assert [float(cell) for cell in re.findall(r"<tr><td>(?:2|4)</td><td>([\d.]+)</td>", page)] == [
        pytest.approx(row["eval"]["bits"], abs=5e-5) for row in RunFolder.existing(job / "run").rows() if "eval" in row]
    assert "Experts" not in page and "[optimizer]" in page


def test_the_card(command, job):
    assert command("train", "job.toml", "--out", "run", "--backend", "numpy").code == 0
    card, summary = (job / "run/model_card.md").read_text(), json.loads((job / "run/summary.json").read_text())
    digest = hashlib.sha256((job / "x.fna").read_bytes()).hexdigest()
    assert f"x.fna, {(job / 'x.fna').stat().st_size:,} bytes, SHA-256 {digest}" in card
    assert f"| this model | {summary['held_out']['bits']:.4f} |" in card and "| uniform | 2.0000 |" in card
    assert "Not compared yet" in card and "d_input = 8" in card
    assert command("parity", "run", "--length", 8).code == 0
    card = (job / "run/model_card.md").read_text()
    assert "All within tolerance" in card and "numpy, mlx, torch" in card
    longer = command("train", "job.toml", "--out", "run", "--backend", "numpy", "--resume", "--steps", 5)
    assert longer.code == 0 and "Not compared yet" in (job / "run/model_card.md").read_text()     # the comparison was of another model
    code = card.split("```python")[1].split("```")[0].replace("run/", str(job / "run") + "/")
    names = {"inputs": em.tensor([[0, 1, 2]], device="numpy")}
    with em.using("numpy"):
        exec(code, names)
    assert names["y"].shape[:2] == (1, 3)


def test_a_run_that_has_learned_nothing_yet(folder):
    folder.metrics.write_text("")
    with pytest.raises(ConfigError, match="holds no update yet"):
        report.run(folder.path, None)


def test_a_summary_that_is_broken(folder):
    (folder.path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="summary.json: is no JSON"):
        report.run(folder.path, None)


def test_a_score_that_is_no_number(folder):
    """Is null in the file, which any reader of JSON takes, nan to whoever reads rows, and told as that."""
    for step, bits in ((3, 1.5), (6, float("nan"))):
        folder.log({"step": step, "seconds": 1.0, "eval": {"bits": bits}})
    (folder.path / "summary.json").write_text(json.dumps(
        {"family": "model", "parameters": 1, "data": "d", "unit": "base", "backend": "numpy", "versions": {}, "fingerprint": [],
         "held_out": {"bits": None}, "baselines": {"uniform": 2.0, "counting": 1.75}}))

    def refuse(name):
        raise ValueError(name)
    last = [json.loads(line, parse_constant=refuse) for line in folder.metrics.read_text().splitlines()][-1]
    assert last["eval"] == {"bits": None} and np.isnan(folder.rows()[-1]["eval"]["bits"])
    before = folder.metrics.read_bytes()
    folder.rewind(6)
    assert folder.metrics.read_bytes() == before
    page = report.run(folder.path, None).read_text()
    held_out = page[page.index("Held-out"):page.index("Curves")]
    assert re.findall(r"<td>([^<]*)</td>", held_out) == ["uniform", "2.0000", "counting", "1.7500", "this model", "nan"]


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
    assert len(images) == 5 and all(complete and width > 300 for _, complete, width in images)


def test_of_many_evaluations_the_first_the_last_and_some_between_are_told(folder):
    rows = [{"step": i, "loss": 1.0} for i in range(1, 101)] + [{"step": i, "seconds": 1.0, "eval": {"bits": 1 / i}} for i in range(1, 101)]
    folder.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    steps = [int(cell) for cell in re.findall(r"<tr><td>(\d+)</td>", report.run(folder.path, None).read_text())]
    assert len(steps) == 40 and steps[0] == 1 and steps[-1] == 100 and steps == sorted(set(steps))
