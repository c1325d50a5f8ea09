"""What a training run tells while it goes on: displays, logs and one's own code listen here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ember_ml.nn.pipeline.training.trainer import Trainer


class Callback:
    """Base of all listeners; each method does nothing until a subclass says otherwise.

    The trainer calls them in the order in which they were given. What one raises ends the training.
    """

    def start(self, trainer: Trainer) -> None:
        """Before the first update. `trainer.progress.step` tells how many updates are done already (a resumed run)."""

    def step(self, row: dict) -> None:
        """Every log_every updates, and after the last one: the row that metrics.jsonl gets (see Trainer)."""

    def evaluate(self, row: dict) -> None:
        """After an evaluation: {"step", "seconds", "eval": {name: number}}."""

    def checkpoint(self, path: Path, step: int) -> None:
        """After the state of `step` updates was saved as `path`, whole."""

    def end(self, row: dict) -> None:
        """Once, with the last row that there was ({} if none); also when an error or Ctrl-C ended the training."""


class Rows(Callback):
    """Keeps every row in a list: `rows`."""

    def __init__(self):
        self.rows: list[dict] = []

    def step(self, row):
        self.rows.append(row)

    def evaluate(self, row):
        self.rows.append(row)
