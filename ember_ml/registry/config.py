"""Configurations: frozen dataclasses, checked by pydantic, that say clearly what is wrong with what they are given.

    @config
    class DenseConfig:
        d_input: int
        bias: bool = True

Values are taken as they are: "8" is no number, 8.0 no whole one, 1 not true. A whole number where a number is asked, a list where a tuple
is, and an array library's own integers are fine. Unknown keys, missing keys and values out of range raise ConfigError; the near names are listed.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Annotated, Any

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import core_schema

from ember_ml.errors import ConfigError, show
from ember_ml.registry.explain import explain, names


#: types for fields: lengths and counts of at least 1, which engines count in 32 bits; a probability that leaves something, 0 <= p < 1; a seed
Size = Annotated[int, pydantic.Field(ge=1, lt=1 << 31)]
Rate = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, pydantic.Field(ge=0)]
#: how many layers there are: far more than any model has, few enough that a number in a file cannot keep its reader busy
Count = Annotated[int, pydantic.Field(ge=1, le=10_000)]

#: levels of tables and lists within one another, far from where Python's recursion ends
MAX_DEPTH = 32


def config(cls):
    """Class decorator: a frozen, validated dataclass whose constructor raises ConfigError."""
    cls.__get_pydantic_core_schema__ = classmethod(lambda _, source, handler: _as_they_are(handler(source)))
    rules = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    made = pydantic_dataclass(cls, frozen=True, config=rules)
    checked = made.__init__

    def init(self, *args, **kw):
        if _too_deep(args, kw):
            raise ConfigError(f"{made.__name__}: expected tables and lists of at most {MAX_DEPTH} levels, received more, or one that holds itself")
        try:
            checked(self, *args, **kw)
        except pydantic.ValidationError as e:
            raise ConfigError(explain(made, e)) from None
        except TypeError as e:
            raise ConfigError(f"{made.__name__}: {e}; its fields are {', '.join(names(made))}") from None

    made.__init__ = init
    return made


def missing_config(cls, given) -> ConfigError:
    """What a class that is made from its Config says where it was given something else."""
    return ConfigError(f"{cls.__name__}: expected its configuration, {cls.__name__}({cls.Config.__name__}(...)) with the fields "
                       f"{', '.join(names(cls.Config))}; received {given}")


def _as_they_are(schema):
    """A pydantic schema whose numbers, bools and strings are not converted from one another; integers of other libraries become Python's."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(map(_as_they_are, schema))
    if not isinstance(schema, dict):
        return schema
    schema = {key: _as_they_are(value) for key, value in schema.items()}
    kind = schema.get("type")
    if kind in ("float", "bool", "str"):
        return schema | {"strict": True}
    if kind == "int":                                        # of 64 bits: no file means more, and longer ones cannot even be printed
        return core_schema.no_info_before_validator_function(_index, {"ge": -(1 << 63), "lt": 1 << 63} | schema | {"strict": True})
    return schema


def _index(value):
    if isinstance(value, (bool, int, str, float)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _too_deep(*values) -> bool:
    """Whether tables and lists lie within one another in more levels than allowed, or one holds itself. Each object counts once a level."""
    level = {id(v): v for v in values}
    for _ in range(MAX_DEPTH):
        inner = (v for table in level.values() for v in (table.values() if isinstance(table, dict) else table))
        level = {id(v): v for v in inner if isinstance(v, (dict, list, tuple))}
        if not level:
            return False
    return True


def from_dict(cls, values: dict[str, Any]):
    """A config of class `cls` from plain values. Raises ConfigError."""
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{cls.__name__}: expected a table of {', '.join(names(cls))}; received {show(values)}")
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
