"""Reading documents out of text files, JSON lines and parquet tables."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ember_ml.data.files import lines, utf8
from ember_ml.errors import ConfigError, DataError, MissingExtra


class Document(NamedTuple):
    """prompt: text that is given and not judged. text: what is learned. label: its class, for classification."""

    text: str
    prompt: str = ""
    label: str | None = None


def read_text(path: Path, documents: Literal["file", "paragraph", "line"]) -> list[Document]:
    """The documents of a UTF-8 file, plain or gzipped: the whole file, its paragraphs (divided by empty lines), or its lines.

    Line ends become "\\n"; empty lines and paragraphs are no documents. Raises DataError for an empty file, and naming the line for
    bytes that are no UTF-8.
    """
    text = utf8(b"".join(lines(path)), path).replace("\r\n", "\n")
    parts = [text] if documents == "file" else text.split("\n\n" if documents == "paragraph" else "\n")
    found = [Document(part if documents == "file" else part.strip("\n")) for part in parts if part.strip()]
    if not found:
        raise DataError(f"{path}: expected text; the file is empty")
    return found


#: halves of a character, which JSON can name, and no encoding can write
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold what: `text` alone, or `prompt` and `completion`; and a `label` for classification.

    Raises ConfigError for another combination.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    label: str | None = None

    def __post_init__(self):
        if (self.prompt is None) != (self.completion is None) or (self.text is None) == (self.prompt is None):
            raise ConfigError("data: expected text = FIELD, or prompt = FIELD with completion = FIELD; received "
                              f"text={self.text!r}, prompt={self.prompt!r}, completion={self.completion!r}")

    def names(self) -> list[str]:
        """The fields that a record has to have."""
        return [n for n in (self.text, self.prompt, self.completion, self.label) if n is not None]

    def document(self, record: dict[str, Any], where: str) -> Document:
        """The document of a record. Raises DataError for a missing field, naming near ones, and for one that is no text."""
        for name in self.names():
            if name not in record:
                near = get_close_matches(name, record, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else ('name what there is in [data]: text = "FIELD", or prompt = "FIELD" and '
                                                                  'completion = "FIELD"')
                raise DataError(f"{where}: expected a field {name!r}; got {', '.join(map(repr, record)) or 'none'}; {hint}")
            value = record[name]
            if not isinstance(value, str) and not (name == self.label and isinstance(value, (int, bool))):
                raise DataError(f"{where}: expected field {name!r} to be a string, got {json.dumps(value, default=str)[:60]}")
            if isinstance(value, str) and _HALVES.search(value):
                raise DataError(f"{where}: expected field {name!r} to be text, got half a character, {_HALVES.search(value)[0]!r}")
        label = None if self.label is None else str(record[self.label])
        if self.text is not None:
            return Document(record[self.text], label=label)
        return Document(record[self.completion], record[self.prompt], label)


def read_jsonl(path: Path, fields: Fields, skip_bad: bool = False) -> tuple[list[Document], list[str]]:
    """(documents, what was wrong with each line that was left out) of a file with one JSON object a line, plain or gzipped.

    Args: fields: see Fields. skip_bad: leave lines out that cannot be read, instead of raising.

    Raises DataError, naming the line, for what is no JSON object, lacks a field, or ends in mid-line; and for a file without records.
    """
    found, bad = [], []
    for number, raw in enumerate(lines(path), 1):
        if not raw.strip():
            continue
        try:
            found.append(_record(path, number, raw, fields))
        except DataError as e:
            if not skip_bad:
                raise DataError(f'{e}; or leave such lines out with bad_lines = "skip"') from None
            bad.append(str(e))
    if not found:
        raise DataError(f"{path}: expected one JSON object a line; " + (f"no line could be read, the first: {bad[0]}" if bad else
                                                                        "the file is empty"))
    return found, bad


def _record(path: Path, number: int, raw: bytes, fields: Fields) -> Document:
    where = f"{path}, line {number}"
    try:
        record = json.loads(utf8(raw, path, number))
    except (ValueError, RecursionError) as e:
        if isinstance(e, DataError):
            raise
        if not raw.endswith(b"\n"):
            raise DataError(f"{where}: the file ends in mid-line, after {len(raw)} bytes of it; fetch the file again, or delete this "
                            "line") from None
        raise DataError(f"{where}: expected a JSON object ({e})") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, such as {{\"{fields.names()[0]}\": ...}}; got a {type(record).__name__}")
    return fields.document(record, where)


def read_parquet(path: Path, fields: Fields) -> list[Document]:
    """The documents of a parquet table, a row each. Needs polars.

    Raises MissingExtra without it; DataError for a file that is damaged or cut short, for a column that is not there (naming near
    ones), and for empty cells.
    """
    try:
        import polars
    except ImportError:
        raise MissingExtra(f'{path}: parquet is read by polars, which is not installed; run: pip install "ember-ml[polars]"') from None
    try:
        there = list(polars.read_parquet_schema(path))
        missing = [n for n in fields.names() if n not in there]
        table = None if missing else polars.read_parquet(path, columns=fields.names())
    except (OSError, polars.exceptions.PolarsError) as e:
        raise DataError(f"{path}: cannot be read as parquet ({str(e).splitlines()[0]}); fetch the file again") from None
    if table is None:
        near = get_close_matches(missing[0], there, 3, 0.5)
        raise DataError(f"{path}: expected a column {missing[0]!r}; got {', '.join(map(repr, there))}"
                        + (f"; did you mean {near[0]!r}?" if near else ""))
    if not table.height:
        raise DataError(f"{path}: expected rows; the table is empty")
    return [fields.document(row, f"{path}, row {number}") for number, row in enumerate(table.iter_rows(named=True), 1)]
