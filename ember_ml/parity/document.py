"""Results of `ember parity --ops` as JSON: written by one machine, joined with those of others.

    {"format": "ember parity ops 1", "machines": {name: {"ember": ..., "python": ..., "engines": {...}}}, "rows": [{...}, ...]}
"""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

from ember_ml import backend as engines
from ember_ml.errors import ConfigError
from ember_ml.parity.compare import Row

FORMAT = "ember parity ops 1"
_FIELDS = {"op": str, "case": str, "engine": str, "dtype": str, "quantity": str, "tolerance": (int, float), "pass": bool, "machine": str}


def places() -> list[str]:
    """Every kind of device of every engine that is there, such as "numpy:cpu", "torch:cuda:0", "mlx:gpu"; the first of each kind."""
    found = {}
    for name in engines.available():
        for device in engines.get(name).devices():
            found.setdefault((name, device.partition(":")[0]), f"{name}:{device}")
    return list(found.values())


def document(rows: list[Row], version: str) -> dict[str, Any]:
    """The rows with what is needed to tell them from those of another machine. version: Ember's."""
    facts = {name: engines.get(name).runtime.describe() for name in engines.available()}
    chips = [chip for about in facts.values() for chip in (about.get("chip"), about.get("device")) if chip and not chip.lower().startswith(("cpu", "device("))]
    name = ", ".join(dict.fromkeys([f"{platform.system()} {platform.machine()}", *chips]))
    return {"format": FORMAT, "machines": {name: {"ember": version, "python": platform.python_version(), "engines": facts}},
            "rows": [{**row, "machine": name} for row in rows]}


def write(found: dict[str, Any], path: Path):
    """One row a line. Errors that are no finite number are written as text."""
    rows = ",\n".join(json.dumps({**row, "error": _number(row["error"])}) for row in found["rows"])
    head = json.dumps({key: value for key, value in found.items() if key != "rows"})
    path.write_text(f'{head[:-1]}, "rows": [\n{rows}\n]}}\n', encoding="utf-8")


def _number(error) -> float | str:
    return error if isinstance(error, str) or math.isfinite(error) else str(error)


def read(path: Path) -> dict[str, Any]:
    """A document that `write` wrote. Raises ConfigError naming the file, what was expected and what is there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: cannot be read as JSON: {e}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ConfigError(f"{path}: expected a file that `ember parity --ops` wrote, with format {FORMAT!r}; got {got!r}")
    machines, rows = found.get("machines"), found.get("rows")
    if not isinstance(machines, dict) or not isinstance(rows, list):
        raise ConfigError(f"{path}: expected machines and rows")
    for i, row in enumerate(rows):
        wrong = not isinstance(row, dict) or [f for f, kind in _FIELDS.items() if not isinstance(row.get(f), kind)] or (
            not isinstance(row.get("error"), (int, float, str)) or row["machine"] not in machines)
        if wrong:
            raise ConfigError(f"{path}: row {i + 1} is none of ours: {str(row)[:120]}")
    return found


def merge(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """All machines and rows; of rows that two documents have for the same machine the later one's hold."""
    rows, machines = {}, {}
    for found in documents:
        machines.update(found["machines"])
        for row in found["rows"]:
            rows[tuple(row[f] for f in ("machine", "op", "case", "engine", "dtype", "quantity"))] = row
    return {"format": FORMAT, "machines": machines, "rows": list(rows.values())}
