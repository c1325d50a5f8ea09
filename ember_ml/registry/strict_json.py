"""JSON that every reader takes: numbers that it does not have (nan, inf) are null."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """The value as JSON text: nan and the infinities as null, keys as strings, and what JSON has no form for by its `str`."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def numbers(value: Any) -> Any:
    """What was read where numbers are expected: each null is nan."""
    if isinstance(value, dict):
        return {k: numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return math.nan if value is None else value


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    return x if x is None or isinstance(x, (bool, int, str)) else str(x)
