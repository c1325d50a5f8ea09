"""erf and its inverse, which NumPy lacks, to the last digits of float64.

erf is read off a table: the nearest of 768 nodes and a Taylor polynomial of degree 7 around it. The derivatives of erf are
Hermite polynomials times the Gaussian, so they follow from a two-term recurrence and need no stored coefficients.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_STEP, _END, _DEGREE = 1.0 / 128.0, 6.0, 7


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """Taylor coefficients of erf at each node: (nodes, degree + 1)."""
    nodes = np.arange(0.0, _END + _STEP, _STEP)
    table = np.empty((nodes.size, _DEGREE + 1))
    table[:, 0] = [math.erf(x) for x in nodes]
    # erf^(n+1) = -2 x erf^(n) - 2 (n - 1) erf^(n-1)
    table[:, 1] = 2.0 / math.sqrt(math.pi) * np.exp(-nodes * nodes)
    for n in range(1, _DEGREE):
        before = table[:, n - 1] * math.factorial(n - 1) if n > 1 else 0.0
        table[:, n + 1] = (-2.0 * nodes * table[:, n] * math.factorial(n) - 2.0 * (n - 1) * before) / math.factorial(n + 1)
    return table


def erf(x: np.ndarray) -> np.ndarray:
    """Error function, elementwise, in x's dtype (computed in float64, error below 1e-15)."""
    wide = np.abs(np.asarray(x, np.float64))
    capped = np.minimum(np.where(np.isnan(wide), 0.0, wide), _END)
    node = np.rint(capped / _STEP).astype(np.intp)
    rest = capped - node * _STEP
    table = _table()
    out = table[node, _DEGREE]
    for n in range(_DEGREE - 1, -1, -1):
        out = out * rest + table[node, n]
    out = np.where(np.isnan(wide), np.nan, np.copysign(out, np.asarray(x, np.float64)))
    return out.astype(np.asarray(x).dtype)


def erfinv(x: np.ndarray) -> np.ndarray:
    """Inverse error function, elementwise, in x's dtype; infinite at -1 and 1, nan beyond.

    Winitzki's approximation (2008), then three Halley steps on erf in float64.
    """
    wide = np.asarray(x, np.float64)
    inside = np.clip(wide, -1.0 + 1e-16, 1.0 - 1e-16)
    log = np.log1p(-inside * inside)
    half = 2.0 / (math.pi * 0.147) + 0.5 * log
    y = np.copysign(np.sqrt(np.sqrt(half * half - log / 0.147) - half), inside)
    for _ in range(3):
        step = (erf(y) - inside) / (2.0 / math.sqrt(math.pi) * np.exp(-y * y))
        y = y - step / (1.0 + y * step)
    y = np.where(np.abs(wide) == 1.0, np.copysign(np.inf, wide), np.where(np.abs(wide) > 1.0, np.nan, y))
    return y.astype(np.asarray(x).dtype)
