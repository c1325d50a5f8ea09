"""The folder of a run: config, metrics, checkpoints, the model.

    config.toml          the resolved configuration
    metrics.jsonl        one row per logged update and per evaluation
    metrics.csv          the same as a table, written by the command
    checkpoints/         all that the next update needs, see `checkpoints`
    model.safetensors    weights and model config, for inference and parity
    loss.png             the curve, drawn by the command
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training.checkpoints import Checkpoints


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: the folder; made if it is not there.
        resume: go on with what is in it. overwrite: delete what is in it first.

    Raises ConfigError if there already is a run and neither is given, or if there is nothing to resume.
    """

    def __init__(self, path: str | Path, resume: bool = False, overwrite: bool = False):
        self._name_files(path)
        if resume and not self.checkpoints().steps():
            raise ConfigError(f"{self.path}: there is no checkpoint to resume from; start without --resume")
        if self.config.exists() and not resume:
            if not overwrite:
                raise ConfigError(f"{self.path}: already holds a run; give --resume to go on, --overwrite to delete it, "
                                  "or another folder with --out")
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        for left in (*self.path.glob(".*.tmp"), *self.path.glob("checkpoints/.*.tmp")):     # by a save that was killed
            left.unlink()

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        """The folder of a run that is there, for reading. Raises ConfigError if it is none."""
        if not (Path(path) / "config.toml").exists():
            raise ConfigError(f"{path}: is no run (there is no config.toml in it); make one with: ember train CONFIG --out {path}")
        folder = cls.__new__(cls)
        folder._name_files(path)
        return folder

    def _name_files(self, path):
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.toml", self.path / "metrics.jsonl"
        self.model, self.plot = self.path / "model.safetensors", self.path / "loss.png"

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        """The folder's checkpoints, of which `keep` are to stay."""
        return Checkpoints(self.path / "checkpoints", keep)

    def log(self, row: dict):
        """Appends one row to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict]:
        """All rows of metrics.jsonl; a last line that a crash cut short is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def rewind(self, step: int):
        """Drops the rows after `step`, which a resumed run will write again."""
        kept = [r for r in self.rows() if r["step"] <= step]
        temporary = self.metrics.with_name(".metrics.tmp")
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(temporary, self.metrics)
