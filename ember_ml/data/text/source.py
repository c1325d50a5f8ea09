"""The sources of documents: text files, JSON lines, parquet tables and FASTA records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from ember_ml.data.classify import LabelledDocuments
from ember_ml.data.documents import Documents
from ember_ml.data.fasta import read_fasta
from ember_ml.data.files import expand
from ember_ml.data.next_token import Layout, NextTokenSource
from ember_ml.data.splits import split_by_hash, split_tail
from ember_ml.data.text.readers import Document, Fields, read_jsonl, read_parquet, read_text
from ember_ml.data.text.tokenizers import Characters, Pieces, of_name
from ember_ml.errors import ConfigError, DataError
from ember_ml.registry import Rate, Size, config


@config
class DocumentsConfig:
    """What all sources of documents share.

    Args:
        files: a name, a glob pattern, "real:NAME", or a list of these. Plain or gzipped.
        length: tokens in a row. batch: rows per update.
        tokenizer: "bytes", "characters", "bases", or the path of a tokenizer.json (extra `tokenizers`).
        letters: the alphabet of "characters"; None for all that occur in the files.
        layout: "windows" (documents end to end), "packed" (whole documents side by side, told apart by segments) or "padded" (a
            document a row, batches by true length). Classification is always padded.
        held_out: share that is never trained on. held_out_files: files to hold out instead.
        split: which documents are held out. "hash": by their content, so that no document ever changes sides; "tail": the last ones.
        rank, world: read part `rank` of `world`: every world-th file, or, of fewer files than that, every world-th document.
    """

    files: str | list[str]
    length: Size
    batch: Size
    tokenizer: str = "bytes"
    letters: str | None = None
    layout: Layout = "windows"
    held_out: Rate = 0.05
    held_out_files: str | list[str] | None = None
    split: Literal["hash", "tail"] = "hash"
    rank: Annotated[int, pydantic.Field(ge=0)] = 0
    world: Size = 1


@config
class TextConfig(DocumentsConfig):
    """Text files. documents: what one is, a "file", a "paragraph" (divided by empty lines) or a "line"; else as DocumentsConfig."""

    split: Literal["hash", "tail"] = "tail"
    documents: Literal["file", "paragraph", "line"] = "file"


@config
class JsonlConfig(DocumentsConfig):
    """Files with one JSON object a line; else as DocumentsConfig.

    Args:
        text: field with the text. prompt, completion: instead of it, fields with what is given and with what is learned after it.
        label: field with the class, which turns the task from next tokens into classification.
        bad_lines: "refuse" lines that cannot be read, or "skip" them.
    """

    layout: Layout = "packed"
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    label: str | None = None
    bad_lines: Literal["refuse", "skip"] = "refuse"

    def fields(self) -> Fields:
        """The fields to read; `text` where none is named."""
        return Fields("text" if self.text is None and self.prompt is None and self.completion is None else self.text, self.prompt,
                      self.completion, self.label)


@config
class ParquetConfig(DocumentsConfig):
    """Parquet tables, a document a row (extra `polars`); fields are columns, as in JsonlConfig."""

    layout: Layout = "packed"
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    label: str | None = None

    fields = JsonlConfig.fields


@config
class FastaConfig(DocumentsConfig):
    """FASTA files of nucleotides, a document a record; else as DocumentsConfig."""

    tokenizer: str = "bases"
    split: Literal["hash", "tail"] = "tail"


Reader = Callable[[Path], tuple[list[Document], list[str]]]


def _text(c: TextConfig) -> Reader:
    return lambda path: (read_text(path, c.documents), [])


def _jsonl(c: JsonlConfig) -> Reader:
    return lambda path: read_jsonl(path, c.fields(), c.bad_lines == "skip")


def _parquet(c: ParquetConfig) -> Reader:
    return lambda path: (read_parquet(path, c.fields()), [])


def _fasta(c: FastaConfig) -> Reader:
    return lambda path: ([Document(r.decode("ascii")) for r in read_fasta(path).values()], [])


_READERS = {TextConfig: _text, JsonlConfig: _jsonl, ParquetConfig: _parquet, FastaConfig: _fasta}


def documents_source(c: DocumentsConfig, seed: int) -> NextTokenSource | LabelledDocuments:
    """The source of a config: next-token prediction, or classification where it names a label. Raises ConfigError, DataError."""
    _check(c)
    read, paths = _READERS[type(c)](c), expand(c.files)
    test_paths = [] if c.held_out_files is None else expand(c.held_out_files)
    both = set(paths) & set(test_paths)
    if both:
        raise DataError(f"{min(both)}: is among both files and held_out_files")
    (docs, paths, bad), (test_docs, test_paths, test_bad) = (_read(read, p, c.rank, c.world) for p in (paths, test_paths))
    tokenizer = _tokenizer(c, docs + test_docs)
    extra = [Path(c.tokenizer)] if isinstance(tokenizer, Pieces) else []
    train, held = _encode(docs, tokenizer), _encode(test_docs, tokenizer)
    if getattr(c, "label", None) is not None:
        labels, test_labels = ([d.label for d in part] for part in (docs, test_docs))
        return LabelledDocuments(train, labels, held, test_labels, tokenizer, c, seed, paths + test_paths + extra, bad + test_bad)
    if c.held_out_files is None:
        train, held = split_tail(train, c.held_out) if c.split == "tail" else split_by_hash(
            train, (f"{d.prompt}\0{d.text}".encode() for d in docs), c.held_out)
    return NextTokenSource(train, held, tokenizer, c.layout, c.length, c.batch, seed, paths + test_paths + extra, bad + test_bad)


def documents_alphabet(c: DocumentsConfig):
    """The tokenizer of a config; the files are read only where they decide it ("characters" without letters)."""
    if c.tokenizer != "characters" or c.letters is not None:
        return _tokenizer(c, [])
    read, paths = _READERS[type(c)](c), expand(c.files) + ([] if c.held_out_files is None else expand(c.held_out_files))
    return _tokenizer(c, [d for p in paths for d in read(p)[0]])


def _check(c: DocumentsConfig):
    if c.rank >= c.world:
        raise ConfigError(f"data: expected rank < world, received rank={c.rank}, world={c.world}")
    if c.world > 1 and (getattr(c, "label", None) is not None or (c.tokenizer == "characters" and c.letters is None)):
        raise ConfigError("data: with world > 1 each rank reads other documents and would find other " + (
            "classes; classification is read whole, with world = 1" if getattr(c, "label", None) is not None else
            "characters; name them: letters = \"...\""))
    if c.held_out_files is None and c.held_out == 0.0:
        raise ConfigError("data: expected held_out > 0, or held_out_files; a model is judged on what it was not trained on")
    if getattr(c, "prompt", None) is not None and c.layout == "windows":
        raise ConfigError('data: prompts need layout = "packed" or "padded"; windows cut documents anywhere')


def _read(read: Reader, paths: list[Path], rank: int, world: int) -> tuple[list[Document], list[Path], list[str]]:
    by_file = len(paths) >= world
    mine = paths[rank::world] if by_file else paths
    docs, bad = [], []
    for path in mine:
        found, left = read(path)
        docs += found
        bad += left
    docs = docs if by_file else docs[rank::world]
    if paths and not docs:
        raise DataError(f"data: rank {rank} of {world} has no document; {len(paths)} files hold fewer than {world}")
    return docs, mine, bad


def _tokenizer(c: DocumentsConfig, docs: list[Document]) -> Any:
    if c.tokenizer != "characters":
        return of_name(c.tokenizer)
    return Characters(c.letters) if c.letters is not None else Characters.of(part for d in docs for part in (d.text, d.prompt))


def _encode(docs: list[Document], tokenizer) -> Documents:
    pairs = [(tokenizer.encode(d.prompt) if d.prompt else None, tokenizer.encode(d.text)) for d in docs]
    return Documents.of((text if prompt is None else np.concatenate([prompt, text]) for prompt, text in pairs), tokenizer.end,
                        (0 if prompt is None else len(prompt) for prompt, _ in pairs))
