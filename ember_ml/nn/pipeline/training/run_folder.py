"""The folder of a run: config, metrics, checkpoints, the model.

    config.toml          the resolved configuration
    data.json            names, sizes and SHA-256 of the files that it is trained on
    metrics.jsonl        one row per logged update and per evaluation
    metrics.csv          the same as a table, written by the command
    checkpoints/         all that the next update needs, see `checkpoints`
    model.safetensors    weights and model config, for inference and parity
    loss.png             the curve, drawn by the command
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from ember_ml.data.files import check_fingerprint
from ember_ml.errors import ConfigError, StorageError, show
from ember_ml.nn.pipeline.training.checkpoints import Checkpoints
from ember_ml.nn.pipeline.training.lock import FolderLock
from ember_ml.nn.pipeline.training.progress import Progress
from ember_ml.registry.strict_json import dumps, numbers
from ember_ml.weights.atomic import replace


_NUMBERS = ("loss", "rate", "grad_norm", "seconds", "tokens", "tokens_per_second", "memory")


@contextmanager
def storing(path: Path):
    """Inside, what the disk refuses becomes a StorageError that names the file and says how to go on."""
    try:
        yield
    except OSError as e:
        raise StorageError(f"{path}: cannot be written: {e.strerror or e}; what was saved before is whole: make room, or get "
                           "the right to write there, and go on with --resume") from e


def put(path: Path, content: str | bytes):
    """Puts a file in the place of `path`, whole or not at all. Raises StorageError."""
    with storing(path):
        replace(path, [content.encode() if isinstance(content, str) else content])


def make_folder(path: Path) -> list[Path]:
    """Makes a folder and those around it. Returns the new ones, the inner ones first. Raises ConfigError for a file, StorageError."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: expected a folder, got a file; choose another --out")
    new = [p for p in (path, *path.parents) if not p.exists()]
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
    return new


def unmake(folders: list[Path]):
    """Takes new folders away again, as far as they are empty."""
    with suppress(OSError):
        for path in folders:
            path.rmdir()


def _is_row(row) -> bool:
    """Whether it is a row as the trainer writes them, see `Trainer`."""
    return isinstance(row, dict) and type(row.get("step")) is int and all(
        isinstance(row[name], (int, float)) for name in _NUMBERS if name in row) and are_numbers(row.get("eval", {}))


def are_numbers(table) -> bool:
    """Whether it is a table of numbers."""
    return isinstance(table, dict) and all(isinstance(v, (int, float)) for v in table.values())


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: the folder; made if it is not there.
        resume: go on with what is in it. overwrite: delete what is in it when the run begins.

    What is there stays as it is until `begin`, which the trainer calls before its first update; a run that is refused before it is abandoned,
    and leaves nothing. Until `lock` is released, which the trainer does at its end (or who called it, see `FolderLock.held`), no other process can train in the
    folder.

    Raises ConfigError if there already is a run and neither is given, if both are, if there is nothing to resume, or if another process is at it.
    """

    def __init__(self, path: str | Path, resume: bool = False, overwrite: bool = False):
        self._name_files(path)
        self.resuming = resume
        if resume and overwrite:
            raise ConfigError(f"{self.path}: expected --resume or --overwrite, received both: one keeps what the other deletes")
        self._made, self._begun = make_folder(self.path), False
        try:
            with storing(self.path):
                self.lock = FolderLock(self.path)
        except BaseException:
            unmake(self._made)
            raise
        there = self.config.exists() or bool(self.checkpoints().steps())
        self._old = there and overwrite
        if resume and not there:
            self.abandon()
            raise ConfigError(f"{self.path}: there is no run to resume; start without --resume")
        if there and not resume and not overwrite:
            self.abandon()
            raise ConfigError(f"{self.path}: already holds a run; give --resume to go on, --overwrite to delete it, or another folder with --out")

    def begin(self):
        """Makes the folder ready to be written to: an old run is deleted if it is to be overwritten, and what a killed save left. Done once."""
        if self._begun:
            return
        self._begun = True
        for path in self.path.iterdir() if self._old else ():
            if path != self.lock.path:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for left in (*self.path.glob(".*.tmp*"), *self.path.glob("checkpoints/.*.tmp")):
            left.unlink()

    def abandon(self):
        """Of a run that was refused: lets others in, and, unless it has begun, takes away what was made for it."""
        if not self._begun and self.lock.new:
            self.lock.path.unlink(missing_ok=True)
        self.lock.release()
        if not self._begun:
            unmake(self._made)

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
        self.data = self.path / "data.json"
        self.model, self.plot = self.path / "model.safetensors", self.path / "loss.png"

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        """The folder's checkpoints, of which `keep` are to stay."""
        return Checkpoints(self.path / "checkpoints", keep)

    def remember_data(self, fingerprint: list[dict]):
        """Keeps what identifies the data (see `ember_ml.data.files.fingerprint`), but of a run that goes on, which `check_data` is for."""
        if not (self.resuming and self.data.exists()):
            put(self.data, json.dumps(fingerprint, indent=1))

    def check_data(self, fingerprint: list[dict]):
        """Raises DataError, naming the file, if the data are not those that a run that goes on began with; ConfigError for a damaged data.json."""
        if not (self.resuming and self.data.exists()):
            return
        try:
            recorded = json.loads(self.data.read_text(encoding="utf-8"))
            known = [{**row, "name": str(row["name"]), "size": int(row["size"]), "sha256": str(row["sha256"])} for row in recorded]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError(f"{self.data}: expected names, sizes and hashes of the data that the run began with; the file is damaged: without it "
                              "the data are not compared") from None
        check_fingerprint(known, fingerprint)

    def save(self, state: dict, progress: Progress, keep: int) -> Path:
        """Saves a checkpoint and returns its file, see `Checkpoints`. Raises StorageError; the checkpoints before stay."""
        with storing(self.checkpoints().file(progress.step)):
            return self.checkpoints(keep).save(state, progress)

    def log(self, row: dict):
        """Appends one row to metrics.jsonl, in which a number that is not finite is null. Raises StorageError."""
        with storing(self.metrics), self.metrics.open("a", encoding="utf-8") as f:
            f.write(dumps(row) + "\n")

    def rows(self) -> list[dict]:
        """All rows of metrics.jsonl, a null as nan; a last line that a crash cut short is left out. Raises ConfigError for a line that is no row."""
        if not self.metrics.exists():
            return []
        rows = []
        for number, line in enumerate(self.metrics.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                row = numbers(json.loads(line))
            except (ValueError, RecursionError):
                break
            if not _is_row(row):
                raise ConfigError(f"{self.metrics}, line {number}: expected a row of a run, with its step and numbers by name; got {show(line)}")
            rows.append(row)
        return rows

    def rewind(self, step: int):
        """Drops the rows after `step`, which a resumed run will write again."""
        kept = [r for r in self.rows() if r["step"] <= step]
        put(self.metrics, "".join(dumps(r) + "\n" for r in kept))
