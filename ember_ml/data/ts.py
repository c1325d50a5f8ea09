"""The .ts text format of the UCR and UEA archives of time series."""

from __future__ import annotations

import numpy as np

from ember_ml.errors import DataError


def parse_ts(text: str, name: str = "ts") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labelled series: one a line after `@data`, channels divided by ":", values by ",", the label last.

    Args: text: of the file. name: for errors.

    Returns: series float32 (N, longest length, channels), padded with 0; lengths int32 (N,); labels int32 (N,), the place of each
    label in the list of `@classLabel true ...`.

    Raises DataError naming the line for values that are no numbers, labels that were not announced, and channels of unequal length.
    """
    series, labels, classes, inside = [], [], None, False
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        where = f"{name}, line {number}"
        if not line or line.startswith("#"):
            continue
        if not inside:
            words = line.split()
            if words[0].lower() == "@classlabel" and words[1:2] == ["true"]:
                classes = {label: i for i, label in enumerate(words[2:])}
            inside = words[0].lower() == "@data"
            continue
        *channels, label = line.split(":")
        if classes is None or label not in classes:
            known = ", ".join(classes or ["none, for @classLabel is missing"])
            raise DataError(f"{where}: expected a label of {known}; got {label[:40]!r}")
        try:
            rows = [[float(v) for v in channel.split(",")] for channel in channels]
        except ValueError as e:
            raise DataError(f"{where}: expected numbers divided by commas ({e})") from None
        if not rows or len({len(r) for r in rows}) != 1 or (series and len(rows) != series[0].shape[1]):
            raise DataError(f"{where}: expected {series[0].shape[1] if series else 'some'} channels of one length, got lengths "
                            f"{[len(r) for r in rows]}")
        series.append(np.array(rows, np.float32).T)
        labels.append(classes[label])
    if not series:
        raise DataError(f"{name}: expected lines of series after @data; found none")
    lengths = np.array([len(s) for s in series], np.int32)
    x = np.zeros((len(series), int(lengths.max()), series[0].shape[1]), np.float32)
    for row, s in zip(x, series):
        row[:len(s)] = s
    return x, lengths, np.array(labels, np.int32)
