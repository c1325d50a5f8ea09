"""Writes docs/support.md from the registry of ops, the engines' tables and the kept results: what runs where, how, and what does not.

    python docs/make_support.py [FILE]             (default: docs/support.md; `make docs`)

Read off the tables, so it says the same on every machine, whatever devices are there.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

from ember_ml.backend import get
from ember_ml.backend.numpy.ops import build
from ember_ml.ops import REGISTRY
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.parity.cases import CASES
from ember_ml.parity.ops import TOLERANCE
from ember_ml.tensor.common import dtypes as dt

ROOT = Path(__file__).parents[1]
ENGINES = ("numpy", "mlx", "torch", "cupy")


def tables() -> dict[str, set[str]]:
    """Engine -> ops that it has a function of its own for. CuPy's cannot be loaded without a GPU: its parts are read off its text."""
    found = {name: set(get(name).table) for name in ENGINES if name != "cupy"}
    text = ast.parse((ROOT / "ember_ml/backend/cupy/__init__.py").read_text(encoding="utf-8"))
    more = {k.arg for node in ast.walk(text) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "update" for k in node.keywords}
    import numpy
    return {**found, "cupy": set(build(numpy, numpy.add.at)) | {name for name in more if name}}


def dtypes() -> str:
    have = {name: get("numpy" if name == "cupy" else name).dtypes for name in ENGINES}
    rows = [f"| {d} | " + " | ".join("yes" if d in have[name] else "no" for name in ENGINES) + " |" for d in dt.ALL]
    return f"| dtype | {' | '.join(ENGINES)} |\n|---|---|---|---|---|\n" + "\n".join(rows)


def gradient(op) -> str:
    if op.vjp == CONSTANT and op.vjp is not None:
        return "none: constant almost everywhere"
    if op.vjp is not None:
        return "rule of its own, on every engine" if op.owns_gradient else "rule"
    return f"none: {op.no_grad}" if op.no_grad else "through its parts"


def ops() -> str:
    have, rows = tables(), []
    for op in REGISTRY.values():
        paths = ["own" if op.name in have[name] else "composite" if op.is_composite else "**no**" for name in ENGINES]
        kernel = f"`{op.kernel.name}`" if op.kernel is not None else ""
        rows.append(f"| `{op.name}` | {' | '.join(paths)} | {kernel} | {gradient(op)} |")
    return f"| op | {' | '.join(ENGINES)} | kernel | gradient |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows)


def composed() -> str:
    """Public functions that are no ops themselves, by name."""
    from ember_ml import ops as public
    names = [n for n in public.__all__ if callable(getattr(public, n)) and n not in REGISTRY and not isinstance(getattr(public, n), type)]
    draws = [f"random.{n}" for n in public.random.__all__]
    return ", ".join(f"`{n}`" for n in (*(n for n in names if n not in ("op", "support")), *draws))


def counted() -> str:
    have = tables()
    lines = []
    for name in ENGINES:
        own = sum(op.name in have[name] for op in REGISTRY.values())
        lines.append(f"- {name}: {own} functions of its own, {sum(op.name not in have[name] and op.is_composite for op in REGISTRY.values())} composites")
    return "\n".join(lines)


def array_api() -> str:
    """The counts of the public suite, as `make array-api` kept them."""
    path = ROOT / "tests/array_api/counts.json"
    if not path.exists():
        return "No run of the suite is kept in this checkout: `make array-api ARRAY_API_TESTS=DIR` makes one."
    kept = json.loads(path.read_text(encoding="utf-8"))
    engines = kept["engines"]
    modules = sorted({m for e in engines.values() for m in e["modules"]})
    lines = [f"The suite data-apis/array-api-tests at `{kept['suite'][:12]}`, standard {kept['standard']}, {kept['examples']} examples a test, "
             "derandomised. Passed / failed (skipped); each failure that stays is named with its reason in `tests/array_api/xfails_<engine>.txt`.", "",
             f"| module | {' | '.join(engines)} |", "|---|" + "---|" * len(engines)]
    for module in modules:
        cells = [e["modules"].get(module) for e in engines.values()]
        lines.append(f"| {module} | " + " | ".join("" if c is None else _cell(c) for c in cells) + " |")
    lines.append("| **all** | " + " | ".join(f"**{_cell(e)}**" for e in engines.values()) + " |")
    lines += ["", *(f"- {name} {e['version']}" + (f": {', '.join(e['left_out'])} are not declared" if e["left_out"] else "")
                    for name, e in engines.items())]
    return "\n".join(lines)


def _cell(c) -> str:
    return f"{c['passed']} / {c['failed']}" + (f" ({c['skipped']})" if c.get("skipped") else "")


def unsupported() -> str:
    """What is not there, and why."""
    reasons: dict[str, list[str]] = {}
    for case in CASES:
        if case.single and case.name not in reasons.setdefault(case.single, []):
            reasons[case.single].append(case.name)
    nowhere = [f"- `{op.name}`: no gradient: {op.no_grad}" for op in REGISTRY.values() if op.no_grad]
    lacking = [f"- `{op.name}`: not on {', '.join(n for n in ENGINES if op.name not in tables()[n])}" for op in REGISTRY.values()
               if not op.is_composite and any(op.name not in tables()[n] for n in ENGINES)]
    return "\n".join([
        "- mlx: no float64 and no complex128 (Metal has neither); asking for one raises `UnsupportedDtype`.",
        "- torch: unsigned integers of 16, 32 and 64 bits can be held and moved; torch itself has few functions of them.",
        "- cupy: erf and erfinv are cupyx's; there is no compiler behind `em.compile`, and gradients are the tape's.",
        "- `em.compile`: results whose shape hangs on values (`nonzero`, `unique_*`, a mask as index) are read on the host, so they cannot "
        "stand in a compiled function.",
        "- mlx, `em.compile`: a function that computes the same split twice (a linear scan and again the same one) is refused by MLX 0.32.",
        *lacking, *nowhere,
        *(f"- no half precision: {why}: {', '.join(f'`{n}`' for n in names)}" for why, names in reasons.items())])


def text() -> str:
    rows = len(CASES)
    tolerances = ", ".join(f"{k} {v:g}" for k, v in TOLERANCE.items())
    return f"""# What runs where

Written by `make docs` from the registry of ops, the engines' tables and the kept results. `ember doctor` tells the same of one machine and
its devices.

## Dtypes

{dtypes()}

bfloat16 on numpy and cupy comes from ml_dtypes. Nothing is cast down silently: a dtype that an engine lacks raises `UnsupportedDtype`.

## Parity

`ember parity --ops` compares every op in every dtype on every engine and device of a machine with its definition in float64: {rows} rows of
{len({c.name for c in CASES})} functions, values on plain, strided, empty and scalar inputs, gradients of the engine and of the tape. It writes a page and
JSON; `ember parity --merge a.json b.json` joins machines. Largest errors allowed, in eps: {tolerances}; a row that does many steps says by how
much more. Tests hold the same rows, the tape against central differences, and compiled functions against the same ones run at once.

## Array API

{array_api()}

## torch on Apple's GPUs

`torch:mps` is a device like any other when it is named (`em.using("torch:mps")`); the default there stays the CPU, and MLX is the engine for
Apple silicon. float64 and complex128 do not exist there and raise `UnsupportedDtype`; none of Ember's kernels runs on it, so ops that
have one take their other path. On a Mac, `ember parity --ops` compares all ops on it, in columns of their own, and `tests/ops/test_mps.py`
runs the same rows; no Mac is among the machines behind this page, so nothing is claimed beyond that.

## Not there, and why

{unsupported()}

## Ops

own: a function of the engine's, or one written for it; composite: made of other ops. A kernel is a Metal and a CUDA text that are twins:
mlx launches the one on Apple's GPUs, torch and cupy the other on NVIDIA's; elsewhere, and where a first-use check fails, the path of the
table holds.

{counted()}

{ops()}

## Functions made of ops

They run wherever their parts do, gradients included: {composed()}.
"""


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("support.md")
    target.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{target}\n")
