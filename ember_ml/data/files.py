"""Data files: patterns of names, reading line by line (also of .gz), and fingerprints that tell when a file has changed."""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ember_ml.data.real import real
from ember_ml.errors import DataError

#: files up to this size are hashed whole; of larger ones the first and the last part
_WHOLE, _PART = 64 << 20, 1 << 20


def expand(files: str | list[str]) -> list[Path]:
    """The files that names, glob patterns ("shards/*.jsonl") and real data sets ("real:shakespeare") stand for.

    Patterns give their matches sorted by name; the order of a list is kept. Raises DataError, naming near files, for a name or a
    pattern without a file, for a folder, and for a file that comes twice.
    """
    found: list[Path] = []
    for name in [files] if isinstance(files, str) else files:
        found += real(name[5:]) if name.startswith("real:") else _matches(name)
    if not found:
        raise DataError("data: expected at least one file, got an empty list")
    twice = next((p for i, p in enumerate(found) if p in found[:i]), None)
    if twice is not None:
        raise DataError(f"{twice}: is listed twice; list every file once")
    return found


def _matches(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        raise DataError(f"{name}: is a folder; name the files in it, such as {name.rstrip('/')}/*")
    if path.exists():
        return [path]
    if glob.has_magic(name):
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if found:
            return found
        raise DataError(f"{name}: no file fits this pattern (read from the folder {Path.cwd()})")
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 3, 0.6)
    raise DataError(f"{name}: no such file" + (f"; did you mean {', '.join(near)}?" if near else f" (read from the folder {Path.cwd()})"))


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, plain or gzipped, each with its line end; a byte order mark before them is left out.

    Raises DataError if the file is not there or its gzip data is damaged.
    """
    try:
        with path.open("rb") as f:
            packed = f.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as f:
            first = f.readline()
            yield first.removeprefix(b"\xef\xbb\xbf")
            yield from f
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise DataError(f"{path}: the gzip data is damaged or cut short ({e}); fetch the file again") from None


def utf8(raw: bytes, path: Path, line: int = 1) -> str:
    """Bytes that begin at line number `line` as text. Raises DataError naming line and byte if they are no UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        line += raw.count(b"\n", 0, e.start)
        raise DataError(f"{path}, line {line}: " + (
            "the file ends in the middle of a character; fetch it again" if e.reason == "unexpected end of data" else
            f"expected UTF-8 text, got the byte 0x{raw[e.start]:02x}; convert the file, as in: iconv -f latin1 -t utf-8")) from None


def fingerprint(paths: list[Path]) -> list[dict[str, Any]]:
    """What identifies the contents of files: for each its name, size in bytes and SHA-256.

    Of a file above 64 MiB the hash is of its first and last MiB: what is appended, cut or replaced is found, an equally long
    change in the middle is not.
    """
    rows = []
    for path in paths:
        size, digest = path.stat().st_size, hashlib.sha256()
        with path.open("rb") as f:
            if size <= _WHOLE:
                while part := f.read(_PART):
                    digest.update(part)
            else:
                digest.update(f.read(_PART))
                f.seek(-_PART, 2)
                digest.update(f.read(_PART))
        rows.append({"name": path.name, "size": size, "sha256": digest.hexdigest()})
    return rows


def check_fingerprint(recorded: list[dict[str, Any]], now: list[dict[str, Any]]):
    """Raises DataError, naming the file and what differs, unless two fingerprints are of the same data."""
    advice = "put the old data back, or start a new run: the updates left would not be those of this run"
    before, after = [r["name"] for r in recorded], [r["name"] for r in now]
    if before != after:
        gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        what = "; ".join(f"{word} {', '.join(names)}" for word, names in (("gone:", gone), ("new:", new)) if names)
        raise DataError(f"data: the files are not those that the run began with ({what or 'another order'}); {advice}")
    for old, new in zip(recorded, now):
        if old["size"] != new["size"]:
            raise DataError(f"{new['name']}: has changed since the run began, {old['size']:,} bytes then, {new['size']:,} now; {advice}")
        if old["sha256"] != new["sha256"]:
            raise DataError(f"{new['name']}: has changed since the run began: its {new['size']:,} bytes are others now; {advice}")
