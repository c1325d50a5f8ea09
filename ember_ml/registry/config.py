"""Configurations: frozen dataclasses, checked by pydantic, that say clearly what is wrong with what they are given.

    @config
    class DenseConfig:
        d_input: int
        bias: bool = True

Unknown keys, missing keys and values out of range raise ConfigError; the near names are listed.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any, get_args, get_type_hints

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

from ember_ml.errors import ConfigError


#: types for fields: lengths and counts of at least 1; a probability that leaves something, 0 <= p < 1
Size = Annotated[int, pydantic.Field(ge=1)]
Rate = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]


def config(cls):
    """Class decorator: a frozen, validated dataclass whose constructor raises ConfigError."""
    strict = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    made = pydantic_dataclass(cls, frozen=True, config=strict)
    checked = made.__init__

    def init(self, *args, **kw):
        try:
            checked(self, *args, **kw)
        except pydantic.ValidationError as e:
            raise ConfigError(_explain(made, e)) from None
        except TypeError as e:
            raise ConfigError(f"{made.__name__}: {e}; its fields are {', '.join(_names(made))}") from None

    made.__init__ = init
    return made


def missing_config(cls, given) -> ConfigError:
    """What a class that is made from its Config says where it was given something else."""
    return ConfigError(f"{cls.__name__}: expected its configuration, {cls.__name__}({cls.Config.__name__}(...)) with the fields "
                       f"{', '.join(_names(cls.Config))}; received {given}")


def _names(cls) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


def _explain(cls, error: pydantic.ValidationError) -> str:
    lines = []
    for e in error.errors():
        if e["type"] == "unexpected_positional_argument":
            names = _names(cls)
            lines.append(f"takes {len(names)} fields, {', '.join(names)}; received {e['input']!r} after them")
            continue
        place = [_names(cls)[p] if i == 0 and isinstance(p, int) else p for i, p in enumerate(e["loc"])]
        where = ".".join(str(p) for p in place)        # positional arguments come by number
        if e["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            names = _names(_class_at(cls, place[:-1]))
            near = difflib.get_close_matches(str(e["loc"][-1]), names, 3, 0.5)
            lines.append(f"unknown key {where!r}; " + (f"did you mean {', '.join(near)}?" if near
                                                       else f"it takes {', '.join(names)}"))
        elif e["type"] == "union_tag_not_found":
            kinds = [c.kind for c in _classes(get_type_hints(_class_at(cls, place[:-1]))[place[-1]])]
            lines.append(f"needs '{where}.kind', one of {', '.join(map(repr, kinds))}; received {e.get('input')!r}")
        elif e["type"] in ("missing", "missing_argument"):
            lines.append(f"needs {where!r}")
        elif e["type"] == "value_error":                     # of a check of ours, which says it all
            lines.append(f"{where}: {e['ctx']['error']}" if where else str(e["ctx"]["error"]))
        else:
            lines.append(f"{where}: {e['msg']}; received {e.get('input')!r}")
    return f"{cls.__name__}: " + "; ".join(lines)


def _class_at(cls, path):
    """The config class that the place `path` of a nested config belongs to, as in ("blocks", 0), or ("wiring", "ncp") of a tagged union."""
    choices = [cls]
    for part in path:
        tagged = [c for c in choices if getattr(c, "kind", None) == part]
        if tagged:
            choices = tagged
        elif isinstance(part, str) and part in _names(choices[0]):
            choices = _classes(get_type_hints(choices[0])[part]) or choices
    return choices[0]


def _classes(hint) -> list:
    """The config classes that a type mentions."""
    return [hint] if dataclasses.is_dataclass(hint) else [c for inner in get_args(hint) for c in _classes(inner)]


def from_dict(cls, values: dict[str, Any]):
    """A config of class `cls` from plain values. Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected a table of {', '.join(_names(cls))}; received {values!r}")
    return cls(**values)


def to_dict(value) -> Any:
    """A config (or a list, dict or tuple of them) as plain dicts, lists, numbers and strings, fit for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value
