"""`--set a.b=c`: values of a config changed from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

from ember_ml import backend as engines
from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.config import RunConfig

#: a field of [training] that another one takes the place of
_INSTEAD = {"training.steps": "epochs", "training.epochs": "steps"}


def read(path: Path, sets: list[str] | None = None, backend: str | None = None) -> RunConfig:
    """The RunConfig of a file with `sets` applied, its engine and device spelled out: `backend`, else the file's, else the default one.

    Raises ConfigError as `configs.read` does, and for a set that fits nothing; BackendMissing.
    """
    run = configs.read(path, change=lambda table: override(table, sets or []))
    engine, device = engines.parse(backend or run.backend)
    return configs.replaced(run, backend=f"{engine.name}:{device}")


def override(table: dict[str, Any], sets: list[str]) -> dict[str, Any]:
    """`table` with each "a.b=c" of `sets` put at its place; the table itself stays as it is.

    Args:
        sets: dotted key, "=", a TOML value. A word that is no TOML value is a string: optimizer.name=adamw. A number in the key is
            an index into a list: model.blocks.0.dropout=0.1. training.steps takes the place of training.epochs, and the other way round.

    Raises ConfigError for a set of another form, a key that a run does not have (with the near ones), or a place inside something
    that is no table.
    """
    for text in sets:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(path):
            raise ConfigError(f"--set {text}: expected key=value, such as training.steps=100 or optimizer.rate.peak=1e-3")
        _check(path, table, text)
        table = _put(table, path, _value(value.strip(), text), text)
        if other := _INSTEAD.get(".".join(path)):
            table = {**table, "training": {k: v for k, v in table["training"].items() if k != other}}
    return table


def _value(text: str, where: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[A-Za-z_./~][\w./:~-]*", text):           # a name or a path, its quotes eaten by the shell
            return text
        raise ConfigError(f'--set {where}: expected a TOML value (3, 1e-3, true, [1, 2], "text"); received {text!r}') from None


def _put(node: Any, path: list[str], value: Any, where: str) -> Any:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(node, list):
        if not first.isdigit() or int(first) >= len(node):
            raise ConfigError(f"--set {where}: expected a number below {len(node)}, the length of the list, in place of {first!r}")
        return [_put(x, rest, value, where) if i == int(first) else x for i, x in enumerate(node)]
    if not isinstance(node, dict):
        raise ConfigError(f"--set {where}: {first!r} lies inside {node!r}, which is no table")
    return {**node, first: _put(node.get(first, {}), rest, value, where)}


def _check(path: list[str], table: dict[str, Any], where: str) -> None:
    """Raises ConfigError if no field of a run goes by that key. Tables whose fields depend on their kind are checked when built."""
    known = _fields(RunConfig)
    inner = known.get(path[0])
    if path[0] in known and (len(path) == 1 or inner is None or path[1] in inner):
        return
    keys = [*known, *(f"{name}.{field}" for name, fields in known.items()
                         for field in fields or (table[name] if isinstance(table.get(name), dict) else ()))]
    wanted = ".".join(path[:2])
    near = [key for key in keys if key.rpartition(".")[2] == path[-1]] or difflib.get_close_matches(wanted, keys, 3, 0.6)
    raise ConfigError(f"--set {where}: unknown key {wanted!r}; " + (f"did you mean {', '.join(near)}?" if near
                                                                      else f"the tables are {', '.join(known)}"))


def _fields(cls) -> dict[str, set[str] | None]:
    """The fields of a config, each with its own fields if it is a config, too."""
    hints = get_type_hints(cls)
    return {f.name: {g.name for g in dataclasses.fields(hints[f.name])} if dataclasses.is_dataclass(hints[f.name]) else None
            for f in dataclasses.fields(cls)}
