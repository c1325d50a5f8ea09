"""Logs of a run beside metrics.jsonl: a table for spreadsheets, and TensorBoard's event files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ember_ml.errors import MissingExtra
from ember_ml.nn.pipeline.training.callbacks import Callback
from ember_ml.nn.pipeline.training.run_folder import RunFolder, put, storing


def scalars(row: dict) -> dict[str, float]:
    """The numbers of a row by name; those of an evaluation as "eval.<name>". Loads of experts and other lists are left to metrics.jsonl."""
    flat = {**row, **{f"eval.{name}": value for name, value in row.get("eval", {}).items()}}
    return {name: value for name, value in flat.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


class CsvLog(Callback):
    """Keeps metrics.csv: the scalars of metrics.jsonl, a line a row. The first row that has something new brings its column.

    Args:
        folder: of the run. What a resumed run's metrics.jsonl holds is written first.
    """

    def __init__(self, folder: RunFolder):
        self.folder, self.file, self.columns = folder, folder.path / "metrics.csv", []

    def start(self, trainer):
        self._write()

    def step(self, row):
        values = scalars(row)
        if not set(values) <= set(self.columns):
            self._write()
            return
        with storing(self.file), self.file.open("a", encoding="utf-8", newline="") as f:
            csv.DictWriter(f, self.columns).writerow(values)

    evaluate = step

    def _write(self):
        rows = [scalars(row) for row in self.folder.rows()]
        self.columns = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.columns)
        if self.columns:
            writer.writeheader()
        writer.writerows(rows)
        put(self.file, table.getvalue())


class TensorBoardLog(Callback):
    """Event files for `tensorboard --logdir FOLDER`: every scalar, by updates.

    Args:
        path: the folder; a resumed run adds to it and hides what came after its checkpoint.

    Raises MissingExtra without the package tensorboardX.
    """

    def __init__(self, path: Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise MissingExtra('--tensorboard needs the extra "tensorboard"; run: pip install "ember-ml[tensorboard]"') from None
        self.path, self.make = path, SummaryWriter

    def start(self, trainer):
        self.writer = self.make(str(self.path), purge_step=trainer.progress.step + 1)

    def step(self, row):
        for name, value in scalars(row).items():
            if name != "step":
                self.writer.add_scalar(name.replace(".", "/"), value, row["step"])

    evaluate = step

    def end(self, row):
        self.writer.close()
