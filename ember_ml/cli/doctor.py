"""`ember doctor`: what is installed, which path each op takes where and why, and whether the kernels are right here."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import ember_ml
from ember_ml import backend as engines
from ember_ml.backend.base import machine_memory
from ember_ml.cli import machine
from ember_ml.cli.output import Output
from ember_ml.errors import BackendMissing
from ember_ml.kernels import outcomes
from ember_ml.ops import REGISTRY
from ember_ml.ops.kernel import agrees
from ember_ml.parity import compare_kernels, render
from ember_ml.registry.strict_json import dumps

PATHS = ("kernel", "native", "composite", "none")


def findings(selftest: bool) -> dict:
    """Everything that doctor tells, as plain dicts.

    Args:
        selftest: run every kernel now, on every device that can launch it.
    """
    found: dict = {"ember": ember_ml.__version__, "python": platform.python_version(), "system": platform.platform(),
                   "cores": os.cpu_count(), "memory": machine_memory(), "compilers": machine.compilers(),
                   "engines": {}, "devices": {}, "selftest": [], "advice": []}
    for name in engines.names():
        try:
            backend = engines.get(name)
        except BackendMissing as e:
            found["engines"][name] = {"missing": str(e)}
            continue
        found["engines"][name] = backend.runtime.describe()
        for device in backend.devices():
            if selftest:
                found["selftest"] += compare_kernels(backend, device)
            found["devices"][f"{name}:{device}"] = {
                "memory": backend.memory(device), "gflops": machine.gflops(f"{name}:{device}") if device == "cpu" else None,
                "ops": {op.name: op.path(backend, device) for op in REGISTRY.values()},
                "kernels": {op.name: kernel_state(op, backend, device, selftest)
                            for op in REGISTRY.values() if op.kernel is not None}}
    found["advice"] = machine.advice(found)
    return found


def kernel_state(op, backend, device: str, check: bool) -> dict[str, str]:
    """{"path": "kernel", "native", "composite", "failed" or "unchecked", "reason": why} of an op that has a kernel."""
    launchers = backend.launchers(device)
    if op.kernel.name not in launchers:
        path = "native" if op.name in backend.table else "composite"
        return {"path": path, "reason": backend.no_launchers(device) if not launchers else "the engine has no launcher for it"}
    if check:
        for dtype in op.kernel.dtypes:
            for form in op.kernel.forms if dtype == op.kernel.dtypes[0] else op.kernel.forms[:1]:
                agrees(op, backend, device, dtype, form)
    found = [o for o in outcomes() if o.kernel == op.kernel.name and o.engine == backend.name and device in o.device]
    if not found:
        return {"path": "unchecked", "reason": "compared with the composite at first use; --selftest does it now"}
    wrong = [f"{o.calls}: {o.reason}" for o in found if o.reason]
    return {"path": "failed" if wrong else "kernel", "reason": "; ".join(wrong) or "agrees with the composite"}


def run(selftest: bool, file: Path | None, output: Output) -> int:
    """Prints the findings; with `selftest` writes them to selftest.json too, or to `file`.

    Returns the exit code: 1 if a kernel that runs here is wrong.
    """
    found = findings(selftest)
    file = file or (Path("selftest.json") if selftest else None)
    output.say(f"ember {found['ember']}, Python {found['python']}, {found['system']}, {found['cores']} cores, "
               f"{found['memory'] / 2**30:.1f} GiB")
    for compiler, path in found["compilers"].items():
        output.say(f"  {compiler:<8} {path or '-'}")
    for name, facts in found["engines"].items():
        if "missing" in facts:
            output.say(f"  {name:<8} -  {facts['missing']}")
            continue
        output.say(f"  {name:<8} " + ", ".join(f"{k} {v}" for k, v in facts.items()))
        for place, device in found["devices"].items():
            if place.partition(":")[0] == name:
                _print_device(output, place, device)
    for line in found["advice"]:
        output.say(f"advice: {line}")
    if selftest:
        failed = sum(not r["pass"] for r in found["selftest"])
        if found["selftest"]:
            output.say(render(found["selftest"]))
            output.say(f"{len(found['selftest']) - failed} passed, {failed} failed")
        else:
            output.say("no device here runs Ember's kernels, so none was tested")
    output.result(found)
    if file:                                                 # last: where it cannot be written, all has been told
        file.write_text(dumps(found, indent=1), encoding="utf-8")
        output.say(f"written to {file}")
    wrong = [s for device in found["devices"].values() for s in device["kernels"].values() if s["path"] == "failed"]
    return int(bool(wrong) or not all(r["pass"] for r in found["selftest"]))


def _print_device(output: Output, place: str, device: dict) -> None:
    taking = {path: [name for name, taken in device["ops"].items() if taken == path] for path in PATHS}
    speed = f", matrix products at {device['gflops']:.0f} GFLOP/s" if device["gflops"] else ""
    paths = ", ".join(f"{len(names)} ops {path}" for path, names in taking.items() if names)
    output.say(f"    {place}: {device['memory'] / 2**30:.1f} GiB to use{speed}, {paths}")
    output.say(f"      composite, for want of a function of the engine's own: {', '.join(taking['composite']) or 'none'}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, state in device["kernels"].items():
        reasons.setdefault((state["path"], state["reason"]), []).append(name)
    for (path, reason), names in reasons.items():
        output.say(f"      with a kernel, {path} ({reason}): {', '.join(names)}")
