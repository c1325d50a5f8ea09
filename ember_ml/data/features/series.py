"""Time series: forecasting the next values of a table of channels from those before."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from ember_ml.data.features.arrays import load_array
from ember_ml.data.features.baselines import regression_scores
from ember_ml.data.features.scale import Standardise
from ember_ml.data.files import expand, fingerprint, lines, utf8
from ember_ml.data.permutation import Permutation
from ember_ml.errors import DataError
from ember_ml.registry import Rate, Size, config


@config
class SeriesConfig:
    """Forecasting.

    Args:
        file: .csv with a line of names (plain or gzipped), or .npy of shape (time,) or (time, channels); or "real:NAME".
        length: steps that are seen. horizon: steps after them that are forecast. batch: windows per update.
        columns: the channels to see, by name (csv) or number (npy); None for all of numbers.
        targets: those to forecast; None for all that are seen.
        held_out: share at the end of the series that is never trained on.
    """

    file: str
    length: Size
    horizon: Size
    batch: Size
    columns: list[str | int] | None = None
    targets: list[str | int] | None = None
    held_out: Rate = 0.2


class SeriesSource:
    """Batches of (windows float32 (batch, length, channels), what follows float32 (batch, horizon * targets)), both standardised by the
    training part: a mean squared error of 1 is that of a model that knows nothing.

    Args: fields: see SeriesConfig. seed: of the windows' order.

    Raises DataError for files that cannot be read, columns that are not there, and series too short.
    """

    task, unit, divided = "regression", "window", False

    def __init__(self, fields: SeriesConfig, seed: int):
        self.config = c = fields
        paths = expand(c.file)
        if len(paths) != 1:
            raise DataError(f"series: expected one file, got {len(paths)} for {c.file!r}")
        self.path = paths[0]
        names, values = read_series(self.path)
        seen = list(range(len(names))) if c.columns is None else [_column(self.path, names, n) for n in c.columns]
        asked = seen if c.targets is None else [_column(self.path, names, n) for n in c.targets]
        cut, span = values.shape[0] - int(c.held_out * values.shape[0]), c.length + c.horizon
        self._count = cut - span + 1
        if self._count < c.batch or values.shape[0] - cut < c.horizon:
            raise DataError(f"series: expected at least {span + c.batch - 1} steps to train on and {c.horizon} held out, for windows of "
                            f"{c.length} + {c.horizon}; got {cut} and {values.shape[0] - cut}")
        used = sorted({*seen, *asked})
        self._whole_scale = Standardise(values[:cut])
        self._x, self._y = (self._whole_scale(values)[:, which] for which in (seen, asked))
        if not np.isfinite(self._x).all() or not np.isfinite(self._y).all():
            step, column = np.argwhere(~np.isfinite(values[:, used]))[0]
            raise DataError(f"{self.path}: expected finite numbers; column {names[used[column]]!r} has another at step {step}")
        self.target_names = [names[i] for i in asked]
        self.channels, self.outputs = len(seen), c.horizon * len(asked)
        self.longest = c.length
        self._cut, self._seed, self.per_epoch = cut, seed, self._count // c.batch

    def batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch of update i: windows and what follows."""
        epoch, place = divmod(i, self.per_epoch)
        size = self.config.batch
        return self._lay(Permutation(self._count, self._seed, epoch)(np.arange(place * size, (place + 1) * size)))

    def held_out(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Windows whose targets are the held-out steps, each once, in order; what is seen reaches back into the training part."""
        starts = self._held_starts()
        for at in range(0, len(starts), self.config.batch):
            yield self._lay(starts[at:at + self.config.batch])

    def baselines(self) -> dict[str, float]:
        """Mean squared error of plain forecasts: the last value, the mean, and ridge regression on the whole window."""
        x, y = self._lay(np.arange(0, self._count, max(1, self._count // 20_000)))
        held, wanted = self._lay(self._held_starts())
        last = np.repeat(self._y[self._held_starts() + self.config.length - 1][:, None], self.config.horizon, 1).reshape(wanted.shape)
        return {"last value": float(np.square(wanted - last).mean()),
                **regression_scores(x.reshape(len(x), -1), y, held.reshape(len(held), -1), wanted)}

    def describe(self) -> str:
        """One line about the data."""
        return (f"{self._cut:,} steps of {self.channels} channel{'' if self.channels == 1 else 's'} to train on, "
                f"{len(self._x) - self._cut:,} held out; {self.config.length} seen, {self.config.horizon} forecast of {', '.join(map(str, self.target_names))}")

    def lengths(self) -> np.ndarray:
        """Steps of the training and of the held-out part, int64 (2,)."""
        return np.array([self._cut, len(self._x) - self._cut], np.int64)

    def first(self) -> str:
        """The first steps of the channels, standardised."""
        return np.array2string(self._x[:3], precision=4, threshold=24)

    def fingerprint(self) -> list[dict[str, Any]]:
        """What identifies the file that was read, see `ember_ml.data.files.fingerprint`."""
        return fingerprint([self.path])

    def _held_starts(self) -> np.ndarray:
        length, horizon = self.config.length, self.config.horizon
        return np.arange(max(0, self._cut - length), len(self._x) - length - horizon + 1, horizon)

    def _lay(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length, horizon = self.config.length, self.config.horizon
        return (self._x[starts[:, None] + np.arange(length)],
                self._y[starts[:, None] + length + np.arange(horizon)].reshape(len(starts), -1))


def read_series(path: Path) -> tuple[list[str | int], np.ndarray]:
    """(names, float64 (time, channels)) of a .csv or .npy file; columns of a csv that hold no number at all, such as dates, are left out.

    Raises DataError naming line and column for a cell that is no number, and for a line with another number of cells.
    """
    if path.suffix == ".npy":
        values = load_array(path)
        if values.ndim not in (1, 2) or values.dtype.kind not in "fiub" or values.size == 0:
            raise DataError(f"{path}: expected numbers of shape (time,) or (time, channels), got {values.dtype} {values.shape}")
        values = values.reshape(len(values), -1).astype(np.float64)
        return list(range(values.shape[1])), values
    table = csv.reader(utf8(raw, path, number) for number, raw in enumerate(lines(path), 1))
    try:
        rows = list(table)
    except csv.Error as e:                                   # such as a quote that is never closed
        raise DataError(f"{path}, line {table.line_num}: cannot be read as a table ({e})") from None
    rows = [(number, row) for number, row in enumerate(rows, 1) if row]
    if len(rows) < 2:
        raise DataError(f"{path}: expected a line of names and lines of numbers; the file has {len(rows)} lines")
    names = [name.strip() for name in rows[0][1]]
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise DataError(f"{path}, line {number}: expected {len(names)} cells, got {len(row)}"
                            + ("; the file may end in mid-line: fetch it again, or delete this line" if number == rows[-1][0] else ""))
    kept = [i for i, cell in enumerate(rows[1][1]) if _number(cell) is not None]
    values = np.empty((len(rows) - 1, len(kept)))
    for t, (number, row) in enumerate(rows[1:]):
        for c, i in enumerate(kept):
            value = _number(row[i])
            if value is None:
                raise DataError(f"{path}, line {number}: expected a number in column {names[i]!r}, got {row[i]!r}; fill gaps first")
            values[t, c] = value
    if not kept:
        raise DataError(f"{path}: expected a column of numbers, got {', '.join(names)}")
    return [names[i] for i in kept], values


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _column(path: Path, names: list, name: str | int) -> int:
    if name not in names:
        near = get_close_matches(str(name), map(str, names), 1, 0.5)
        raise DataError(f"{path}: expected a column {name!r}; got {', '.join(map(str, names))}"
                        + (f"; did you mean {near[0]!r}?" if near else ""))
    return names.index(name)
