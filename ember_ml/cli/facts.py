"""What is known of a run, out of its folder: for the report and the model card.

The command writes summary.json into the folder when it trains, and parity.json when it compares.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import ember_ml
from ember_ml import backend as engines
from ember_ml.cli.display import told
from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training.config import RunConfig
from ember_ml.nn.pipeline.training.run_folder import RunFolder, are_numbers, put
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry.strict_json import dumps, numbers


@dataclasses.dataclass(frozen=True)
class Facts:
    """folder; config: the text of config.toml; rows: of metrics.jsonl; summary: see `summarize`, {} if the run was not trained by the
    command; parity: rows of the last comparison, [] if there was none."""

    folder: Path
    config: str
    rows: list[dict]
    summary: dict[str, Any]
    parity: list[dict]

    @property
    def unit(self) -> str:
        """What a token is called."""
        return self.summary.get("unit", "token")

    @property
    def evaluations(self) -> list[dict]:
        """The rows of evaluations."""
        return [r for r in self.rows if r.get("eval")]

    @property
    def scores(self) -> dict[str, float]:
        """Of the model on held-out data; {} before the first evaluation."""
        return numbers(self.summary.get("held_out", {})) or (self.evaluations[-1]["eval"] if self.evaluations else {})

    @property
    def baselines(self) -> dict[str, float]:
        """Scores of plain models on the same held-out data."""
        return numbers(self.summary.get("baselines", {}))

    @property
    def score(self) -> str:
        """What the first score of an evaluation is called: "bits per base", "accuracy"."""
        return told(next(iter(self.scores)), self.unit) if self.scores else ""

    def about(self) -> list[tuple[str, str]]:
        """(what, value) of the run in a few lines."""
        s, updates = self.summary, [r for r in self.rows if "loss" in r]
        last = updates[-1] if updates else {"step": 0}
        lines = [("updates", f"{last['step']:,}, {last.get('tokens', 0):,} {self.unit}s, {last.get('seconds', 0):,.0f} s")]
        if s:
            lines = [("model", f"{s['family']} of {s['parameters']:,} parameters"), ("data", s["data"]), *lines, ("engine", s["backend"]),
                     ("versions", ", ".join(f"{name} {version}" for name, version in s["versions"].items()))]
            lines += [("data file", f"{f['name']}, {f['size']:,} bytes, SHA-256 {f['sha256']}") for f in s["fingerprint"]]
        return lines


def read(path: Path) -> Facts:
    """The Facts of a run. Raises ConfigError for a folder that holds none, or a file in it that is no JSON."""
    folder = RunFolder.existing(path)
    summary, parity = _json(folder.path / "summary.json", {}), _json(folder.path / "parity.json", [])
    if summary and not (_has(summary, _SUMMARY) and all(_has(file, _FILE) for file in summary["fingerprint"])
                        and all(are_numbers(numbers(summary.get(scores, {}))) for scores in ("held_out", "baselines"))):
        raise ConfigError(f"{folder.path / 'summary.json'}: expected what ember train writes there; delete it")
    if not all(_has(row, _ROW) and isinstance(row.get("error"), (int, float, type(None))) for row in parity):
        raise ConfigError(f"{folder.path / 'parity.json'}: expected what ember parity writes there; delete it, and compare again")
    return Facts(folder.path, folder.config.read_text(encoding="utf-8", errors="replace"), folder.rows(), summary, parity)


#: what is read of summary.json, of each file in it, and of each row of parity.json
_SUMMARY = {"family": str, "parameters": int, "data": str, "backend": str, "versions": dict, "fingerprint": list, "unit": str}
_FILE = {"name": str, "size": int, "sha256": str}
_ROW = {"engine": str, "quantity": str, "tolerance": (int, float), "pass": bool}


def _has(table, kinds: dict) -> bool:
    return isinstance(table, dict) and all(isinstance(table.get(name), kind) for name, kind in kinds.items())


def summarize(run: RunConfig, stage: SupervisedTraining) -> dict[str, Any]:
    """What is known before the first update: engine, data and its fingerprint, size of the model, versions."""
    engine, _ = engines.parse(run.backend)
    return {"backend": run.backend, "family": run.model.get("family", "model"), "data": stage.data.describe(), "unit": stage.data.unit,
            "task": stage.data.task, "fingerprint": stage.data.fingerprint(), "parameters": stage.model.count(), "seed": run.seed,
            "versions": {"ember": ember_ml.__version__, "python": platform.python_version(),
                         engine.name: engine.runtime.describe().get("version", "")}}


def write_summary(folder: RunFolder, summary: dict[str, Any]):
    """Puts a summary where `read` finds it."""
    put(folder.path / "summary.json", dumps(summary, indent=1) + "\n")


def _json(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: is no JSON: {e}; delete it, and train or compare again") from None
    if not isinstance(found, type(default)):
        raise ConfigError(f"{path}: expected a {type(default).__name__}, got a {type(found).__name__}; delete it")
    return found
