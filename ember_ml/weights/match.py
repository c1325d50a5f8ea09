"""Whether the tensors of a file are those that a model expects."""

from __future__ import annotations

import os
from difflib import get_close_matches

from ember_ml.errors import WeightsError
from ember_ml.tensor import DType
from ember_ml.weights.header import show

SHOWN = 5  # of each kind of difference


def check(expected: dict[str, tuple[tuple[int, ...], DType]], found: dict[str, tuple[tuple[int, ...], DType]],
          path: str | os.PathLike) -> None:
    """Compares names, shapes and dtypes, before anything is changed.

    Args:
        expected, found: (shape, dtype) by name. path: the file that `found` comes from.

    Raises one WeightsError that lists all differences by kind: how many, the first few, and names that are near.
    """
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    both = [(show(name), expected[name], found[name]) for name in expected if name in found]
    shapes = [f"{n} expected {list(e[0])}, got {list(f[0])}" for n, e, f in both if tuple(e[0]) != tuple(f[0])]
    dtypes = [f"{n} expected {e[1]}, got {f[1]}" for n, e, f in both if e[1] is not f[1]]
    candidates = surplus[:1000]  # each is compared with each missing name: a hostile file must not set the time
    kinds = {"missing": [_near(n, candidates) for n in missing[:SHOWN]], "surplus": [show(n) for n in surplus[:SHOWN]],
             "of another shape": shapes[:SHOWN], "of another dtype": dtypes[:SHOWN]}
    counts = [len(missing), len(surplus), len(shapes), len(dtypes)]
    lines = [f"\n  {count} {kind}: {'; '.join(first)}{'; ...' if count > len(first) else ''}"
             for (kind, first), count in zip(kinds.items(), counts) if count]
    if lines:
        raise WeightsError(f"{os.fspath(path)}: its tensors are not those of the model:{''.join(lines)}")


def _near(name: str, candidates: list[str]) -> str:
    hits = get_close_matches(name, candidates, 1)
    return f"{show(name)} (the file has {show(hits[0])})" if hits else show(name)
