"""Configs as TOML and JSON files."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from ember_ml.errors import ConfigError
from ember_ml.registry.config import to_dict

#: a file of a config is text that a person wrote: what is larger is something else
MAX_BYTES = 16 << 20

#: a key of so many dotted parts, on which tomllib spends the square of their number
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")


def read_table(path: str | Path) -> dict[str, Any]:
    """The plain values of a .toml or .json file. Raises ConfigError with the file, and the line of a syntax error."""
    path = Path(path)
    kind = _kind(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: expected a config, got a file of {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no {kind}: its bytes are not UTF-8 text") from None
    if kind == "TOML" and _LONG_KEY.search(text):
        raise ConfigError(f"{path}: expected keys of a few parts, got one of more than 64")
    try:
        values = tomllib.loads(text) if kind == "TOML" else json.loads(text)
    except (ValueError, RecursionError) as e:                # both syntax errors are ValueErrors
        raise ConfigError(f"{path}: is no {kind}: {e}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a table at the top, got a {type(values).__name__}")
    return values


def write_table(path: str | Path, values: dict[str, Any]):
    """Writes plain values as .toml or .json, which `read_table` gives back; TOML has no None: such keys are left out."""
    path = Path(path)
    text = to_toml(values) if _kind(path) == "TOML" else json.dumps(values, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


def without_defaults(value) -> Any:
    """A config as plain values like `to_dict`, without the fields that have their default."""
    if not dataclasses.is_dataclass(value):
        return [without_defaults(v) for v in value] if isinstance(value, (list, tuple)) else to_dict(value)
    kept = {}
    for f in dataclasses.fields(value):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if getattr(value, f.name) != default:
            kept[f.name] = without_defaults(getattr(value, f.name))
    return kept


def to_toml(table: dict[str, Any], prefix: str = "") -> str:
    """TOML of a nested dict of numbers, strings, lists and dicts. A list of tables stands one a line."""
    lines = [f"{_key(key)} = {_lines(v)}" for key, v in table.items() if v is not None and not isinstance(v, dict)]
    for key, v in table.items():
        if isinstance(v, dict):
            name = f"{prefix}{_key(key)}"
            lines.append(f"\n[{name}]\n{to_toml(v, name + '.')}")
    return "\n".join(lines) + ("\n" if not prefix else "")


def _kind(path: Path) -> str:
    kinds = {".toml": "TOML", ".json": "JSON"}
    if path.suffix not in kinds:
        raise ConfigError(f"{path}: expected a name that ends in .toml or .json")
    return kinds[path.suffix]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _lines(v) -> str:
    if isinstance(v, (list, tuple)) and any(isinstance(x, dict) for x in v):
        return "[\n" + "".join(f"    {_value(x)},\n" for x in v) + "]"
    return _value(v)


def _value(v) -> str:
    if isinstance(v, bool):
        return str(v).lower()
    if isinstance(v, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(x)}" for k, x in v.items() if x is not None) + " }"
    if isinstance(v, (list, tuple)):
        return "[" + ", ".join(_value(x) for x in v) + "]"
    if isinstance(v, str):
        return json.dumps(v, ensure_ascii=False).replace("\x7f", "\\u007f")   # as TOML escapes, but for DEL
    return repr(v)
