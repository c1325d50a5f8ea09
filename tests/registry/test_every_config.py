"""Every config class there is, swept with values of the wrong type or size: what is accepted is what the field says, and nothing is converted."""

import ast
import dataclasses
import json
import math
import sys
import tomllib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import ember_ml
from ember_ml.errors import ConfigError, RegistryError
from ember_ml.nn.pipeline.training import plan, probes  # noqa: F401 - they bring all others
from ember_ml.registry import from_dict, to_dict
from ember_ml.registry.files import to_toml

SOURCE = Path(ember_ml.__file__).parent
CONFIGS = sorted({c for name, m in list(sys.modules.items()) if name.startswith("ember_ml.") for c in vars(m).values()
                  if isinstance(c, type) and dataclasses.is_dataclass(c) and hasattr(c, "__pydantic_validator__")}, key=lambda c: c.__name__)

#: values that fields must have where the classes check them together
TOGETHER = {"TrainingConfig": {"steps": 3}, "JsonlConfig": {"text": "text"}, "ParquetConfig": {"text": "text"}, "Fields": {"text": "text"}}

POOL = ["8", "0.5", "true", "", b"text", 8.0, 0.5, 1e300, math.nan, math.inf, True, False, 0, 1, 8, -1, 2 ** 31, 2 ** 63, 16 ** 6000, None, [], [8], ["8"],
        [True], [0.5, 0.25], [[8]], {}, {"8": 8}, {"d_input": "8"}, [{"d_input": 8.0}], object()]

#: the first field of each type: others of the type are checked by the same lines, and by default meet a part of the pool
FIRST = {repr(hint): (c, name) for c in reversed(CONFIGS) for name, hint in get_type_hints(c, include_extras=True).items()}


def plain(hint):
    """(type without bounds, its alternatives)."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint, [m for m in get_args(hint)] if get_origin(hint) in (Union, types.UnionType) else [hint]


def fits(hint, value) -> bool:
    """Whether a plain value is one of a type, by our own reading of the type; bounds are not looked at."""
    hint, members = plain(hint)
    if len(members) > 1:
        return any(fits(m, value) for m in members)
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint in (type(None), None):
        return value is None
    if origin is Literal:
        return any(value == w and type(value) is type(w) for w in args)
    if hint in (int, bool, str):
        return type(value) is hint
    if hint is float:
        return type(value) is float and not math.isnan(value) or type(value) is int
    if hint is dict or origin is dict:
        return isinstance(value, dict)
    if origin in (list, tuple):
        items = args[:1] * len(value) if isinstance(value, list) and (origin is list or args[-1] is ...) else args
        return isinstance(value, list) and len(value) == len(items) and all(map(fits, items, value))
    assert dataclasses.is_dataclass(hint), hint
    if isinstance(value, str) and hint.__name__ == "BranchConfig":
        return True                                                  # the name of a layer stands for it
    hints = get_type_hints(hint, include_extras=True)
    return isinstance(value, dict) and ("options" in hints or all(fits(hints[k], v) for k, v in value.items() if k in hints))


def example(hint):
    """A plain value of a type."""
    hint, (first, *others) = plain(hint)
    if others:
        return example(first)
    args = get_args(hint)
    known = {int: 8, float: 0.5, bool: True, str: "text", dict: {}, Any: {}, type(None): None}
    if hint in known:
        return known[hint]
    if get_origin(hint) is Literal:
        return args[0]
    if get_origin(hint) in (list, tuple, dict):
        return {} if get_origin(hint) is dict else [example(a) for a in args if a is not ...]
    return whole(hint)


def whole(cls) -> dict:
    """The fields that a config must have."""
    hints = get_type_hints(cls, include_extras=True)
    needed = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    kind = {"kind": cls.kind} if "kind" in hints else {}
    return {name: example(hints[name]) for name in needed} | TOGETHER.get(cls.__name__, {}) | kind


def test_every_config_of_the_house_is_swept():
    texts = [text for file in SOURCE.rglob("*.py") if "\n@config\n" in (text := file.read_text(encoding="utf-8"))]
    decorated = {node.name for text in texts for node in ast.walk(ast.parse(text))
                 if isinstance(node, ast.ClassDef) and any(isinstance(d, ast.Name) and d.id == "config" for d in node.decorator_list)}
    assert decorated == {c.__name__ for c in CONFIGS} and len(decorated) > 100


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls", CONFIGS, ids=lambda c: c.__name__)
def test_wrong_values_are_refused_and_never_converted(cls, every):
    hints = get_type_hints(cls, include_extras=True)
    base = whole(cls)
    for i, f in enumerate(dataclasses.fields(cls)):
        accepted, pool = 0, POOL if every or FIRST[repr(hints[f.name])] == (cls, f.name) else POOL[i % 4::4]
        for value in [*pool, *([example(hints[f.name])] if f.default is dataclasses.MISSING else [to_dict(f.default)])]:
            try:
                made = getattr(from_dict(cls, {**base, f.name: value}), f.name)
            except (ConfigError, RegistryError) as e:        # the latter of a block that no one knows
                text = str(e)
                assert any(name in text for name in hints) and ("received" in text or "needs" in text or "unknown" in text) and len(text) < 3000, text
                continue
            accepted += 1
            assert fits(hints[f.name], value), f"{f.name} took {value!r} for {made!r}"
        assert accepted or pool is not POOL, f"{f.name} took nothing"


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda c: c.__name__)
def test_sizes_have_an_end(cls):
    """Lengths and counts of none, less, or more than engines count are refused before anything is built of them."""
    for f in dataclasses.fields(cls):
        bounds = get_type_hints(cls, include_extras=True)[f.name]
        if "Ge(ge=1)" in repr(bounds) and fits(bounds, 8):
            for value in (0, -1, 2 ** 31, 2 ** 63, 10 ** 400):
                with pytest.raises(ConfigError, match=f"{f.name}: expected .*received"):
                    from_dict(cls, {**whole(cls), f.name: value})


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda c: c.__name__)
def test_files_keep_it_and_misspelt_keys_are_named(cls):
    made = from_dict(cls, whole(cls))
    table = to_dict(made)
    assert from_dict(cls, json.loads(json.dumps(table))) == made
    assert from_dict(cls, tomllib.loads(to_toml(table))) == made     # TOML has no None: those fields have it as their default
    if "options" in table:                                           # keys that go to the layers, which check them
        return
    for name in table:
        with pytest.raises(ConfigError, match=f"unknown key '{name}x'; did you mean .*{name}" if len(name) > 2 else "unknown key"):
            from_dict(cls, {**whole(cls), f"{name}x": 1})
