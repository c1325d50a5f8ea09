"""Data sources by the `kind` of a configuration's [data] table."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from ember_ml.data.audio import AudioConfig, audio_source
from ember_ml.data.dna import Bases, DnaConfig, DnaSource
from ember_ml.data.features.arrays import ArraysConfig, arrays_source
from ember_ml.data.features.series import SeriesConfig, SeriesSource
from ember_ml.data.text.encoded import EncodedSource, TokensConfig, encoded_alphabet
from ember_ml.data.text.source import FastaConfig, JsonlConfig, ParquetConfig, TextConfig, documents_alphabet, documents_source
from ember_ml.data.vision import ImagesConfig, images_source
from ember_ml.errors import ConfigError, show
from ember_ml.registry.config import from_dict

#: kind -> (config class, `open(config, seed)`, `alphabet(config)` or None where there are no tokens)
SOURCES = {
    "dna": (DnaConfig, DnaSource, lambda config: Bases),
    "text": (TextConfig, documents_source, documents_alphabet),
    "jsonl": (JsonlConfig, documents_source, documents_alphabet),
    "parquet": (ParquetConfig, documents_source, documents_alphabet),
    "fasta": (FastaConfig, documents_source, documents_alphabet),
    "tokens": (TokensConfig, EncodedSource, encoded_alphabet),
    "arrays": (ArraysConfig, arrays_source, None),
    "series": (SeriesConfig, SeriesSource, None),
    "images": (ImagesConfig, images_source, None),
    "audio": (AudioConfig, audio_source, None),
}


def _pick(table: dict[str, Any]):
    rest = dict(table)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in SOURCES:
        near = get_close_matches(kind, SOURCES, 1, 0.5) if isinstance(kind, str) and len(kind) < 100 else []
        raise ConfigError(f"[data]: expected kind to be one of {', '.join(SOURCES)}; received {show(kind)}"
                          + (f"; did you mean {near[0]!r}?" if near else ""))
    return SOURCES[kind], rest


def config_class(table: dict[str, Any]) -> type:
    """The config class of a [data] table. Raises ConfigError for an unknown kind."""
    return _pick(table)[0][0]


def open_source(table: dict[str, Any], seed: int):
    """The data source of a [data] table, its order seeded.

    A source has `task` ("next_token", "classification" or "regression") and `unit`; `vocab_size` and `alphabet`, or `channels`; and
    `classes` or `outputs` by its task; `longest`, positions of its longest batch, held out or not; `divided`, whether rows hold several
    documents, or one and padding, which its batches tell. Its methods:

        batch(i)        arrays of update i, batch first: a pure function of i
        held_out()      batches to judge on, in order
        baselines()     name -> score on those of a plain model
        describe()      one line
        lengths()       true length of every document or sequence
        first()         the first training sample, as text
        fingerprint()   what identifies the files, for `check_fingerprint`

    Raises ConfigError or DataError.
    """
    (cls, open_, _), fields = _pick(table)
    return open_(from_dict(cls, fields), seed)


def alphabet(table: dict[str, Any]):
    """The alphabet of a [data] table: `encode`, `decode`, `samples`, `end`. Data is read only where it decides the alphabet.

    Raises ConfigError for data without tokens.
    """
    (cls, _, alphabet_), fields = _pick(table)
    if alphabet_ is None:
        raise ConfigError(f"[data]: kind = {table['kind']!r} has no tokens, so there is no text to generate")
    return alphabet_(from_dict(cls, fields))
