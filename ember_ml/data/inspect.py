"""What is in the data of a [data] table: counts, lengths, a first sample, lines that cannot be read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ember_ml.data.sources import config_class, open_source

_BINS = 12


def inspect(table: dict[str, Any]) -> dict[str, Any]:
    """Facts about the data of a [data] table, plain values for JSON.

    Args:
        table: `kind` and its fields. `length` and `batch` may be missing; lines that cannot be read are left out and listed.

    Returns: kind, task, unit, summary (one line), files (the fingerprint), items (documents or sequences), lengths (min, median, mean,
    max, total and a histogram of {"from", "to", "count"}, whose bins double), batches (in one pass), vocabulary or channels, classes (and
    class_names) or outputs where the task has them, first (the first sample), bad_lines.

    Raises ConfigError or DataError.
    """
    known = {f.name for f in dataclasses.fields(config_class(table))}
    fields = {key: value for key, value in (("length", 256), ("batch", 1)) if key in known} | table
    if "bad_lines" in known:
        fields["bad_lines"] = "skip"
    source = open_source(fields, seed=0)
    lengths = source.lengths()
    facts = {"kind": table["kind"], "task": source.task, "unit": source.unit, "summary": source.describe(), "files": source.fingerprint(),
             "items": int(lengths.size), "lengths": _lengths(lengths), "batches": int(source.per_epoch)}
    for name, attribute in (("vocabulary", "vocab_size"), ("channels", "channels"), ("classes", "classes"),
                            ("class_names", "class_names"), ("outputs", "outputs")):
        if hasattr(source, attribute):
            facts[name] = getattr(source, attribute)
    return facts | {"first": source.first(), "bad_lines": list(getattr(source, "skipped", []))}


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    top = max(1, int(lengths.max()))
    edges = [0] + [e for e in (2**k for k in range(64)) if e < top][-(_BINS - 1):] + [top]
    edges = sorted(set(edges))
    histogram = [{"from": low + 1, "to": high, "count": int(((lengths > low) & (lengths <= high)).sum())}
                 for low, high in zip(edges, edges[1:])]
    return {"min": int(lengths.min()), "median": float(np.median(lengths)), "mean": float(lengths.mean()), "max": int(lengths.max()),
            "total": int(lengths.sum()), "histogram": histogram}
