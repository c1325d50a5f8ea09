"""What is wrong with the values of a config: for each place the key path, what was expected, what came, and what was meant."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import pydantic

from ember_ml.errors import show

SHOWN = 5  # problems in one message

#: pydantic's kinds of errors -> what was expected, with the error's context
_EXPECTED = {
    "int_type": "a whole number", "float_type": "a number", "finite_number": "a finite number", "bool_type": "true or false", "string_type": "a string",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "a table", "model_attributes_type": "a table", "greater_than": "a number above {gt}", "less_than": "a number below {lt}",
    "greater_than_equal": "a number of at least {ge}", "less_than_equal": "a number of at most {le}", "multiple_of": "a multiple of {multiple_of}",
    "too_long": "a list of at most {max_length}", "literal_error": "{expected}", "union_tag_invalid": "one of {expected_tags}",
}

#: texts that stand for what was expected
_IN_QUOTES = {"int_type": r"[+-]?\d+", "float_type": r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", "bool_type": "true|false"}


class _Problem(NamedTuple):
    """path: to the value. expected: what should be there, "" where `said` is a whole sentence and not only what came. choice: how long the path
    is before the alternatives of which this is one, None where there are none."""

    path: tuple
    expected: str
    said: str
    choice: int | None


def names(cls) -> list[str]:
    """The fields of a config class."""
    return [f.name for f in dataclasses.fields(cls)]


def explain(cls, error: pydantic.ValidationError) -> str:
    """The message for a config of class `cls` that could not be made."""
    found = [_problem(cls, e) for e in error.errors(include_url=False)]
    inside = {(p.choice, p.path[:p.choice]) for p in found if p.choice is not None and len(p.path) > p.choice}
    said: dict[tuple, str] = {}
    for p in found:
        if p.choice is not None and (len(p.path), p.path) in inside:
            continue                                         # of the alternatives, the value has the form of another one
        options = dict.fromkeys(q.expected for q in found if q.path == p.path and q.expected)
        line = f"{_dotted(p.path)}: expected {' or '.join(options)}; {p.said}" if p.expected else p.said
        place = (p.path, not p.expected)
        said[place] = max(said.get(place, ""), line, key=len)
    lines = list(said.values())
    return f"{cls.__name__}: " + "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else "")


def _problem(cls, e: dict) -> _Problem:
    kind, given = e["type"], e.get("input")
    if kind == "unexpected_positional_argument":
        return _Problem((), "", f"takes {len(names(cls))} fields, {', '.join(names(cls))}; received {show(given)} after them", None)
    path, hint, owner, choice = _walk(cls, e["loc"])
    where, came, expected = _dotted(path), f"received {show(given)}", _EXPECTED.get(kind, "").format(**e.get("ctx", {}))
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        near = _near(path[-1], names(owner), 3, 0.5)
        said = f"unknown key {where!r}; " + (f"did you mean {', '.join(near)}?" if near else f"it takes {', '.join(names(owner))}")
    elif kind in ("missing", "missing_argument"):
        said = f"needs {where!r}"
    elif kind == "union_tag_not_found":
        said = f"needs '{where}.kind', one of {', '.join(repr(c.kind) for c in get_args(hint))}; {came}"
    elif kind == "value_error":                              # of a check of ours, which says it all
        said = f"{where}: {e['ctx']['error']}" if where else str(e["ctx"]["error"])
    elif kind == "union_tag_invalid":
        path, said = (*path, "kind"), f"received {show(e['ctx']['tag'])}"
    elif kind == "dataclass_type":
        expected, said = f"a table of {', '.join(names(hint))}" if dataclasses.is_dataclass(hint) else "a table", came
    elif kind == "literal_error":
        near = _near(given, [w for w in get_args(hint) if isinstance(w, str)], 1, 0.6)
        said = came + (f"; did you mean {near[0]!r}?" if near else "")
    elif isinstance(given, str) and re.fullmatch(_IN_QUOTES.get(kind, "(?!)"), given):
        said = f"{came}, a string: leave the quotes out"
    elif kind == "int_type" and isinstance(given, float) and given.is_integer():
        said = f"{came}: write it without a point or exponent"
    else:
        said = came if expected else f"{where}: {e['msg']}; {came}"
    return _Problem(path, expected, said, choice)


def _near(word, known: list[str], count: int, likeness: float) -> list[str]:
    return difflib.get_close_matches(word, known, count, likeness) if isinstance(word, str) and len(word) < 100 else []


def _dotted(path: tuple) -> str:
    text = ".".join(map(str, path))                          # of keys that a stranger may have made up
    return text if len(text) < 200 and text.isprintable() else show(text)


def _walk(cls, places: tuple) -> tuple[tuple, Any, type, int | None]:
    """(path, type at its end, class of its last key, length of the path before the last alternatives) of pydantic's place of an error.

    The place has the names of alternatives among its keys, and a call's fields by their number; the path has the keys alone.
    """
    path: list = []
    hint, owner, choice = cls, cls, None
    for i, part in enumerate(places):
        if dataclasses.is_dataclass(hint):
            part = names(hint)[part] if i == 0 and isinstance(part, int) else part
            owner, hint = hint, _types(hint).get(part, Any)
            path.append(part)
        elif get_origin(hint) is Union and isinstance(part, str):
            tagged = [m for m in get_args(hint) if getattr(m, "kind", None) == part]
            choice = choice if tagged else len(path)
            hint = (tagged or [m for m in get_args(hint) if part == getattr(m, "__name__", "") or part.startswith(f"{getattr(m, '__name__', '')}[")]
                    or [Any])[0]
        else:
            inner = [a for a in get_args(hint) if a is not ...]
            hint = inner[min(part, len(inner) - 1)] if inner and isinstance(part, int) and get_origin(hint) is not dict else Any
            path.append(part)
        hint = _without_none(hint)
    return tuple(path), hint, owner, choice


_types = functools.cache(get_type_hints)


def _without_none(hint):
    """A type without its bounds, and as a Union without None where it has alternatives."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        hint = Union[tuple(a for a in get_args(hint) if a is not type(None))]
        return _without_none(hint) if get_origin(hint) is not Union else hint
    return hint
