"""Arrays of features for classification and regression, out of .npz and .npy files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ember_ml.data.features.baselines import classification_scores, regression_scores
from ember_ml.data.features.scale import Standardise
from ember_ml.data.files import expand, fingerprint
from ember_ml.data.padding import Buckets, padded_width
from ember_ml.data.splits import by_hash
from ember_ml.errors import ConfigError, DataError
from ember_ml.registry import Rate, Size, config


@config
class ArraysConfig:
    """Sequences of feature vectors, each with a class or with numbers.

    Args:
        files: one .npz file with the arrays below, or "real:NAME"; or None, and x and y are the paths of .npy files.
        batch: sequences per update.
        x: sequences, (N, length, channels), or (N, length) of one channel; any real dtype.
        y: classes, integers (N,) from 0 on; or for regression numbers (N,) or (N, outputs).
        lengths: true lengths (N,) of padded sequences; None for the array `lengths`, if there is one.
        task: "classification" or "regression".
        held_out: share to judge on, by hash of the sequence. Not used where the file has arrays named like x, y and lengths with
            "_test" after it: then those are judged on.
        standardise: shift and scale each channel to mean 0 and deviation 1 over the training sequences; targets of regression, too, so
            that a mean squared error of 1 is that of a model that knows nothing.
    """

    batch: Size
    files: str | None = None
    x: str = "x"
    y: str = "y"
    lengths: str | None = None
    task: Literal["classification", "regression"] = "classification"
    held_out: Rate = 0.2
    standardise: bool = True


class ArraySource:
    """Batches of (sequences float32 (batch, length, channels)[, lengths int32 (batch,)], classes int32 (batch,) or targets float32
    (batch, outputs)); lengths where they differ, and then neighbours in length come together.

    Args: fields: see ArraysConfig. seed: of the order. files: whose contents `fingerprint` records. arrays: by the names in `fields`.

    Attributes: channels; classes or outputs; scale, target_scale: what standardised, see Standardise.

    Raises DataError for arrays that are missing (naming near ones), numbers of rows that differ, values that are no finite numbers, and
    lengths that do not fit.
    """

    unit = "sequence"

    def __init__(self, fields: ArraysConfig, seed: int, files: list[Path], arrays: dict[str, np.ndarray]):
        self.config = c = fields
        self.task, self.files = c.task, files
        train = _Part(arrays, c, "")
        if f"{c.x}_test" in arrays:
            held = _Part(arrays, c, "_test")
        else:
            is_held = by_hash((row.tobytes() for row in train.x), c.held_out)
            if not is_held.any() or is_held.all():
                raise DataError(f"arrays: held_out={c.held_out:g} leaves {int((~is_held).sum())} sequences to train on and "
                                f"{int(is_held.sum())} to judge on; change it")
            train, held = train.take(~is_held), train.take(is_held)
        self._train, self._held = train, held
        self.channels = train.x.shape[2]
        if held.x.shape[2] != self.channels:
            raise DataError(f"arrays: expected {self.channels} channels to judge on, as in {c.x!r}, got {held.x.shape[2]}")
        self.ragged = self.divided = bool((train.lengths != train.x.shape[1]).any() or (held.lengths != held.x.shape[1]).any())
        self.scale = Standardise(train.x[np.arange(train.x.shape[1]) < train.lengths[:, None]], c.standardise)
        if self.task == "classification":
            self.classes = int(train.y.max()) + 1
            if held.y.max() >= self.classes:
                raise DataError(f"arrays: class {held.y.max()} is judged on, but none of the training sequences has it")
        else:
            self.outputs = train.y.shape[1]
            self.target_scale = Standardise(train.y, c.standardise)
        self._buckets = Buckets(train.lengths, c.batch, seed)
        self.per_epoch = self._buckets.per_epoch

    def batch(self, i: int) -> tuple[np.ndarray, ...]:
        """Batch of update i: sequences, lengths where they differ, classes or targets."""
        return self._lay(self._train, self._buckets.rows(i))

    def held_out(self) -> Iterator[tuple[np.ndarray, ...]]:
        """The sequences to judge on, the shortest first; the last batch may have fewer."""
        order = np.argsort(self._held.lengths, kind="stable")
        for start in range(0, len(order), self.config.batch):
            yield self._lay(self._held, order[start:start + self.config.batch])

    def baselines(self) -> dict[str, float]:
        """Plain models on the sequences laid flat: accuracy for classification, mean squared error for regression."""
        width = max(self._train.x.shape[1], self._held.x.shape[1])
        (train, y), (held, wanted) = (self._flat(part, width) for part in (self._train, self._held))
        return (classification_scores if self.task == "classification" else regression_scores)(train, y, held, wanted)

    def describe(self) -> str:
        """One line about the data."""
        longest, shortest = int(self._train.lengths.max()), int(self._train.lengths.min())
        length = f"{longest}" if longest == shortest else f"{shortest} to {longest}"
        kind = f"{self.classes} classes" if self.task == "classification" else f"{self.outputs} outputs"
        return (f"{len(self._train.x):,} sequences of length {length}, {self.channels} channels, {kind} to train on, "
                f"{len(self._held.x):,} held out")

    @property
    def longest(self) -> int:
        """Positions of the longest batch."""
        return max(self._width(part, part.lengths) for part in (self._train, self._held))

    def lengths(self) -> np.ndarray:
        """True lengths, int64, the training sequences first."""
        return np.concatenate([self._train.lengths, self._held.lengths]).astype(np.int64)

    def first(self) -> str:
        """Label and first vectors of the first training sequence, in the units of the data."""
        x = np.array2string(self._train.x[0, :3], precision=4, threshold=24)
        return f"{self.config.y} = {self._train.y[0].tolist()}; {self.config.x} = {x}"

    def fingerprint(self) -> list[dict[str, Any]]:
        """What identifies the files that were read, see `ember_ml.data.files.fingerprint`."""
        return fingerprint(self.files)

    def _lay(self, part: _Part, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        lengths = part.lengths[rows]
        width = self._width(part, lengths)
        x = self.scale(part.x[rows, :width])
        y = part.y[rows] if self.task == "classification" else self.target_scale(part.y[rows])
        if not self.ragged:
            return x, y
        x[np.arange(width) >= lengths[:, None]] = 0.0
        return x, lengths, y

    def _width(self, part: _Part, lengths: np.ndarray) -> int:
        """Of a batch of sequences of these lengths."""
        return min(part.x.shape[1], padded_width(int(lengths.max()))) if self.ragged else part.x.shape[1]

    def _flat(self, part: _Part, width: int) -> tuple[np.ndarray, np.ndarray]:
        x = self.scale(part.x)
        x[np.arange(x.shape[1]) >= part.lengths[:, None]] = 0.0
        wide = np.zeros((len(x), width, self.channels), np.float32)
        wide[:, :x.shape[1]] = x
        return wide.reshape(len(x), -1), part.y if self.task == "classification" else self.target_scale(part.y)


class _Part:
    """x (N, length, channels), lengths int32 (N,), y int32 (N,) or float (N, outputs): the arrays whose names end in `end`, checked."""

    def __init__(self, arrays: dict[str, np.ndarray], c: ArraysConfig, end: str):
        x, y = (_named(arrays, name + end) for name in (c.x, c.y))
        if x.ndim not in (2, 3) or x.dtype.kind not in "fiub":
            raise DataError(f"arrays: expected {c.x + end!r} of real numbers (N, length, channels) or (N, length), got {x.dtype} "
                            f"{x.shape}")
        self.x = x[:, :, None] if x.ndim == 2 else x
        n, width = self.x.shape[:2]
        if n == 0 or width == 0:
            raise DataError(f"arrays: expected sequences in {c.x + end!r}, got shape {x.shape}")
        given = c.lengths or "lengths"
        lengths = _named(arrays, given + end) if c.lengths or given + end in arrays else np.full(n, width)
        for name, a in ((c.y, y), (given, lengths)):
            if a.shape[:1] != (n,):
                raise DataError(f"arrays: expected as many rows in {name + end!r} as in {c.x + end!r}, {n}; got shape {a.shape}")
        if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or lengths.min() < 1 or lengths.max() > width:
            raise DataError(f"arrays: expected {given + end!r} to be integers from 1 to {width}, the length of {c.x + end!r}; got "
                            f"{lengths.dtype} from {lengths.min()} to {lengths.max()}")
        for name, a in ((c.x, x), (c.y, y)):
            if a.dtype.kind == "f" and not np.isfinite(a).all():
                first = int(np.argwhere(~np.isfinite(a))[0][0])
                raise DataError(f"arrays: expected finite numbers in {name + end!r}; row {first} has others")
        self.lengths = lengths.astype(np.int32)
        if c.task == "classification":
            if y.ndim != 1 or y.dtype.kind not in "iub" or y.min() < 0 or y.max() >= 1 << 31:
                raise DataError(f"arrays: expected {c.y + end!r} to be classes, integers (N,) from 0 on, got {y.dtype} {y.shape}; for "
                                'numbers set task = "regression"')
            self.y = y.astype(np.int32)
        else:
            if y.ndim not in (1, 2) or y.dtype.kind not in "fiub":
                raise DataError(f"arrays: expected {c.y + end!r} to be numbers (N,) or (N, outputs), got {y.dtype} {y.shape}")
            self.y = y.reshape(n, -1)

    def take(self, which: np.ndarray) -> _Part:
        """The rows of a mask."""
        part = object.__new__(_Part)
        part.x, part.lengths, part.y = self.x[which], self.lengths[which], self.y[which]
        return part


def arrays_source(c: ArraysConfig, seed: int) -> ArraySource:
    """The source of a config's files. Raises DataError, also for files that are no arrays or cut short; ConfigError."""
    if c.files is None:
        paths = [Path(p) for p in (c.x, c.y, c.lengths) if p is not None]
        return ArraySource(c, seed, paths, {str(p): load_array(p) for p in paths})
    paths = expand(c.files)
    if len(paths) != 1 or paths[0].suffix != ".npz":
        raise ConfigError(f"arrays: expected one .npz file, or x and y as .npy files with no `files`; received {c.files!r}")
    return ArraySource(c, seed, paths, load_arrays(paths[0]))


def load_array(path: Path) -> np.ndarray:
    """A .npy file, mapped into memory, not read. Raises DataError if it is none, is cut short or would need pickle."""
    try:
        return np.load(expand(str(path))[0], mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(f"{path}: cannot be read as a .npy array ({e}); it may be cut short: write it again") from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. Raises DataError if it is none, is cut short or would need pickle."""
    try:
        with np.load(path, allow_pickle=False) as z:
            return {name: z[name] for name in z.files}
    except (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as e:    # a header may claim terabytes
        raise DataError(f"{path}: cannot be read as .npz arrays ({e}); it may be cut short: write it again") from None


def _named(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        near = get_close_matches(name, arrays, 3, 0.4)
        raise DataError(f"arrays: expected an array {name!r}; got {', '.join(map(repr, arrays))}"
                        + (f"; did you mean {near[0]!r}?" if near else ""))
    return arrays[name]
