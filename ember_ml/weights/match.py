"""Whether the tensors of a file are those that a model expects."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import NamedTuple

from ember_ml.errors import WeightsError, show
from ember_ml.tensor import DType

SHOWN = 5  # of each kind of difference

Form = tuple[tuple[int, ...], DType]


class LoadReport(NamedTuple):
    """Which tensors of a module a file holds, by name.

    loaded: those of the same name and shape. missing: the module's alone. surplus: the file's alone. mismatched: of both, with another
    shape or kind of number: (the module's, the file's), each (shape, dtype).
    """

    loaded: list[str]
    missing: list[str]
    surplus: list[str]
    mismatched: dict[str, tuple[Form, Form]]

    @property
    def whole(self) -> bool:
        """Whether the file holds what the module has, no more and no less."""
        return not (self.missing or self.surplus or self.mismatched)

    def __str__(self) -> str:
        rows = [("missing", show(n), "") for n in self.missing] + [("surplus", show(n), "") for n in self.surplus] + [
            ("mismatched", show(n), f"expected {_form(*want)}, got {_form(*got)}") for n, (want, got) in self.mismatched.items()]
        wide = max((len(name) for _, name, _ in rows[:ROWS]), default=0)
        lines = [f"{what:<10}  {name:<{wide}}  {note}".rstrip() for what, name, note in rows[:ROWS]]
        more = [f"... and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
        return "\n".join([f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.surplus)} surplus, "
                          f"{len(self.mismatched)} mismatched", *lines, *more])


ROWS = 40  # of a printed report


def _form(shape, dtype) -> str:
    return f"{dtype}{list(shape)}"


def fit(expected: dict[str, Form], found: dict[str, Form]) -> LoadReport:
    """What of `found` can take the place of `expected`: the same name and shape, and numbers of the same kind, of any width."""
    both = [name for name in expected if name in found]
    bad = {n: (expected[n], found[n]) for n in both
           if tuple(expected[n][0]) != tuple(found[n][0]) or expected[n][1].kind != found[n][1].kind}
    return LoadReport([n for n in both if n not in bad], [n for n in expected if n not in found],
                      [n for n in found if n not in expected], bad)


def check(expected: dict[str, Form], found: dict[str, Form], path: str | os.PathLike) -> None:
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
