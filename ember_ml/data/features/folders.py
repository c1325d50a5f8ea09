"""Labelled files: those of a class lie in a folder of its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ember_ml.errors import DataError


def labelled(paths: list[Path]) -> tuple[list[str], np.ndarray]:
    """(names of the classes in their order, int32 (files,) the class of each) by the folder that a file lies in.

    Raises DataError unless there are at least two such folders.
    """
    names = sorted({p.parent.name for p in paths})
    if len(names) < 2:
        raise DataError(f"data: expected files of at least two classes, each class in a folder of its name, as in data/*/*.png; got "
                        f"{len(paths)} files in the folder {names[0]!r}")
    return names, np.array([names.index(p.parent.name) for p in paths], np.int32)
