"""`ember doctor`: what is installed, what runs where, and why a kernel is not taken."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from rich.console import Console

import ember_ml
from ember_ml import backend as engines
from ember_ml.errors import BackendMissing
from ember_ml.kernels import outcomes
from ember_ml.ops import REGISTRY
from ember_ml.ops.kernel import kernel_function


def findings(selftest: bool) -> dict:
    """Everything that doctor tells, as plain dicts.

    Args:
        selftest: run each kernel's self-check now on every engine that can launch it.
    """
    found: dict = {"ember": ember_ml.__version__, "python": platform.python_version(), "system": platform.platform(),
                   "engines": {}, "kernels": {}}
    for name in engines.names():
        try:
            backend = engines.get(name)
        except BackendMissing as e:
            found["engines"][name] = {"missing": str(e)}
            continue
        counts = {path: sum(op.path(backend) == path for op in REGISTRY.values()) for path in ("native", "composite", "none")}
        found["engines"][name] = {**backend.runtime.describe(), "ops": counts}
        found["kernels"][name] = {op.name: kernel_state(op, backend, selftest)
                                  for op in REGISTRY.values() if op.kernel is not None}
    return found


def kernel_state(op, backend, check: bool) -> dict[str, str]:
    """{"path": "kernel", "composite", "failed" or "unchecked", "reason": why} of an op's kernel on one engine."""
    if op.kernel.name not in backend.launchers():
        return {"path": "composite", "reason": "no Metal or CUDA device for it here"}
    if check:
        kernel_function(op, backend)
    found = [o for o in outcomes() if o.kernel == op.kernel.name and o.engine == backend.name]
    if not found:
        return {"path": "unchecked", "reason": "compared with the composite at first use; --selftest does it now"}
    return {"path": "failed" if found[-1].reason else "kernel", "reason": found[-1].reason or "agrees with the composite"}


def run(selftest: bool, json_path: Path | None) -> int:
    """Prints the findings. Returns the exit code: 1 if a kernel that runs here fails its self-check."""
    found = findings(selftest)
    if json_path:
        json_path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"ember {found['ember']}, Python {found['python']}, {found['system']}")
    for name, facts in found["engines"].items():
        if "missing" in facts:
            console.print(f"  {name:<6} -  {facts['missing']}")
            continue
        ops = facts.pop("ops")
        console.print(f"  {name:<6} " + ", ".join(f"{k} {v}" for k, v in facts.items()))
        console.print(f"         ops: {ops['native']} native, {ops['composite']} composite, {ops['none']} missing")
        for op, state in found["kernels"][name].items():
            console.print(f"         kernel of {op}: {state['path']} ({state['reason']})")
    return int(any(s["path"] == "failed" for kernels in found["kernels"].values() for s in kernels.values()))
