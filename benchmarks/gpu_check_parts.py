"""The parts of `benchmarks.gpu_check` that are Ember's own checks: kernels, ops, golden cases, the demo. Each is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def steps_of(part: str, engines: list[str], updates: int):
    """(name, function) of each step of a part; the function gives its rows: (name, fault, facts), an empty fault is a pass."""
    kind, *rest = part.split()
    if kind == "about":
        return [(engine, partial(about, engine)) for engine in engines]
    if kind == "kernels":
        return [(part, partial(kernels, *rest))]
    if kind == "demo":
        return [(part, partial(demo, *rest, updates))]
    if kind == "ops":
        from ember_ml.parity.cases import CASES
        return [(case.id, partial(ops, *rest, case)) for case in CASES]
    from tests.golden.case import find, lookup
    engine, area = rest
    return [(case.key, partial(golden, engine, case)) for case in find(ROOT / "tests/golden/data" / area) if lookup(case)]


def about(engine: str):
    from ember_ml import backend
    try:
        yield engine, "", backend.parse(engine)[0].runtime.describe()
    except ImportError as e:
        yield engine, str(e), {}


def kernels(engine: str):
    from ember_ml.backend import parse
    from ember_ml.parity import compare_kernels
    backend, device = parse(engine)
    found = compare_kernels(backend, next((d for d in backend.devices() if d.startswith(device)), device))
    if not found:
        yield engine, backend.no_launchers(device), {}
    for row in found:
        fault = "" if row["pass"] else f"{row['error']} (at most {row['tolerance']})"
        yield f"{row['case']} {row['dtype']} {row['quantity']}", fault, {"error": row["error"]}


def ops(engine: str, case):
    from ember_ml.parity.ops import op_rows
    for row in op_rows(case, engine):
        fault = "" if row["pass"] else f"{row['error']} (at most {row['tolerance']})"
        yield f"{row['case']} {row['dtype']} {row['quantity']}", fault, {"error": row["error"]}


def golden(engine: str, case):
    from tests.golden.runner import run
    result = run(case, engine)
    yield case.key, "" if result.passed else result.fault or f"{result.worst:.1e} of tolerance at {result.where}", {}


def demo(engine: str, updates: int):
    """Trains the demo's model for some updates, then `ember parity` of the run: this engine against NumPy."""
    from ember_ml import data
    from ember_ml.cli.generate import existing_model
    from ember_ml.parity import compare_run
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train = [sys.executable, "-c", "from ember_ml.cli import main; main()", "train", "examples/dna_hyena.toml", "--out", str(run),
                 "--backend", engine, "--steps", str(updates)]
        done = subprocess.run(train, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            yield "training", (done.stderr or done.stdout)[-400:], {}
            return
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [m["loss"] for m in metrics if "loss" in m]
        falls = losses[-1] < losses[0]
        yield "training", "" if falls else f"the loss went from {losses[0]} to {losses[-1]}", {"first": metrics[0], "last": metrics[-1]}
        config, file = existing_model(run)
        source = data.open_source(config.data, config.seed)
        for row in compare_run(file, source.sample(257), [engine], allowed=source.alphabet.samples):
            yield row["quantity"], "" if row["pass"] else f"{row['error']} (at most {row['tolerance']})", {"error": row["error"]}


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:120]} ... {text[-270:]}"


def run_part(part: str, engines: list[str], updates: int, skip: int, out: Path) -> None:
    """Appends a JSON line when a step begins, and one for each of its rows. The first `skip` steps are left out."""
    def write(line: dict):
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")

    try:
        for number, (step, rows) in enumerate(steps_of(part, engines, updates)):
            if number >= skip:
                write({"step": number, "name": step})
                for name, fault, facts in rows():
                    write({"name": name, "fault": one_line(fault), **facts})
    except Exception as e:  # a part that cannot even begin is a finding, too
        write({"name": "the part itself", "fault": one_line(f"{type(e).__name__}: {e}")})
