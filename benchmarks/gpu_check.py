"""Everything that only an NVIDIA GPU can tell, in one command: `python -m benchmarks.gpu_check`.

Kernels through CuPy and through torch, their tests, compute-sanitizer over them, the parity row of every op, every
golden case, and the demo's model, trained and compared with NumPy, on both engines. Each part is a process of its own, so that a crash
or a hang of one costs the others nothing; what it found until then counts. Prints a table and the reasons of failures; all rows go into a JSON. Exit code 1 if one fails.

Needs numpy, ml_dtypes, pydantic, safetensors, CuPy and torch; pytest only for the part "tests".
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu_check_parts import ROOT, one_line, run_part

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")

#: runs pytest where hypothesis may be missing: tests/conftest.py sets it up, kernel tests do not use it
PYTEST = """
import sys, types
try:
    import hypothesis
except ImportError:
    profile = types.SimpleNamespace(register_profile=lambda *a, **k: None, load_profile=lambda *a: None)
    sys.modules["hypothesis"] = types.SimpleNamespace(settings=profile)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def parts(engines: list[str]) -> list[str]:
    """All parts, those first that take longest."""
    tests = sorted(path for path in (ROOT / "tests/kernels").glob("test_*.py") if re.search(r"def test_\w+\(machine", path.read_text()))
    machines = [{"torch": "torch_gpu", "cupy": "cuda_gpu"}.get(engine.partition(":")[0], "none") for engine in engines]
    areas = sorted(p.name for p in (ROOT / "tests/golden/data").iterdir() if p.is_dir())
    return ["about", *(f"demo {e}" for e in engines), *(f"tests {m} {path.stem}" for path in tests for m in machines),
            *(f"golden {e} {area}" for area in areas for e in engines), *(f"ops {e}" for e in engines),
            *(f"kernels {e}" for e in engines), *(f"sanitizer {tool}" for tool in TOOLS)]


def command(part: str, engines: list[str], updates: int, skip: int, out: Path) -> list[str] | str:
    """What runs a part, or why it cannot run here."""
    own = [sys.executable, "-m", "benchmarks.gpu_check", "--updates", str(updates), "--skip", str(skip), "--engines", *engines, "--part"]
    if part.startswith("tests"):
        if subprocess.run([sys.executable, "-c", "import pytest"], capture_output=True).returncode:
            return "pytest is not installed"
        _, machine, name = part.split()
        return [sys.executable, "-c", PYTEST, f"tests/kernels/{name}.py", "-v", "--tb=no", "-rfE", "-p", "no:cacheprovider",
                "-k", machine]
    if part.startswith("sanitizer"):
        folders = [*os.environ["PATH"].split(os.pathsep), "/usr/local/cuda/bin", *map(str, Path(sys.prefix).glob(
            "lib/python*/site-packages/nvidia/*/bin"))]
        tool = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
        if tool is None:
            return "compute-sanitizer is not installed"
        return [tool, "--tool", part.split()[1], "--error-exitcode", "9", "--print-limit", "3", *own, f"kernels {engines[-1]}",
                "--out", str(out)]
    return [*own, part, "--out", str(out)]


def measure(part: str, engines: list[str], updates: int, folder: Path, deadline: float, skip: int = 0) -> dict:
    """Runs a part until it ends or time is up. {"part", "rows", "seconds", "note"}; a note tells what ended it early.

    Where a step kills the process, it is a failed row, and another process goes on behind it.
    """
    name = part.replace(" ", "_").replace(":", "_")
    out, start = folder / f"{name}.{skip}", time.monotonic()
    run, rows, note = command(part, engines, updates, skip, out), [], ""
    if isinstance(run, str) or deadline <= start:
        return {"part": part, "rows": [], "seconds": 0.0, "note": f"not run: {run if isinstance(run, str) else 'no time left'}"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
    with (folder / f"{name}.{skip}.printed").open("w+") as printed:
        code = 0
        try:
            code = subprocess.run(run, cwd=ROOT, env=env, stdout=printed, stderr=subprocess.STDOUT, timeout=deadline - start).returncode
            note = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            note = "time was up"
        printed.seek(0)
        lines = printed.read().splitlines()
    last = None
    if part.startswith("tests"):
        rows = test_rows(lines)
    elif part.startswith("sanitizer"):
        said = [line.removeprefix("========= ") for line in lines if line.startswith("========= ")]
        rows = [{"name": part, "fault": note and one_line(" | ".join([note, *said[-6:]]))}]
        note = said[-1] if said else note
    elif out.exists():
        found = [json.loads(line) for line in out.read_text().splitlines()]
        rows, last = [row for row in found if "step" not in row], next((row for row in reversed(found) if "step" in row), None)
    if code < 0 and last:
        rows.append({"name": last["name"], "fault": f"the process died of signal {-code}"})
        rest = measure(part, engines, updates, folder, deadline, last["step"] + 1)
        rows, note = rows + rest["rows"], rest["note"]
    if note.startswith("exit") and not rows:
        note += ": " + one_line(" | ".join(lines[-3:]))
    elif note.startswith("exit") and part.startswith("tests"):
        note = ""                                                # its failures are in the rows
    return {"part": part, "rows": rows, "seconds": time.monotonic() - start, "note": note}


def test_rows(lines: list[str]) -> list[dict]:
    """What `pytest -v -rfE` printed, as far as it came."""
    reasons = dict(line.split(" ", 1)[1].split(" - ", 1) for line in lines if line.startswith(("FAILED ", "ERROR ")) and " - " in line)
    rows = []
    for line in lines:
        if found := re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR)(\s|$)", line):
            bad = found[2] != "PASSED"
            rows.append({"name": found[1].rpartition("::")[2], "fault": one_line(reasons.get(found[1], found[2])) if bad else ""})
    return rows + [{"name": name, "fault": one_line(reason)} for name, reason in reasons.items() if "::" not in name]


def report(results: list[dict], most: int) -> None:
    """The table, then the faults, equal ones together."""
    def say(line=""):
        sys.stdout.write(line + "\n")

    say(f"{'part':<34} {'passed':>6} {'failed':>6} {'seconds':>7}")
    for r in results:
        failed = sum(bool(row["fault"]) for row in r["rows"])
        say(f"{r['part']:<34} {len(r['rows']) - failed:>6} {failed:>6} {r['seconds']:>7.1f}  {r['note'][:160]}".rstrip())
    for r in results:
        reasons = Counter(row["fault"][:120] for row in r["rows"] if row["fault"])
        for reason, count in reasons.most_common(most):
            names = [row["name"] for row in r["rows"] if row["fault"][:120] == reason]
            say(f"FAIL {r['part']}: {names[0][:80]}{f' and {count - 1} more' if count > 1 else ''}: {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default 8)")
    parser.add_argument("--engines", nargs="+", default=["torch:cuda:0", "cupy"], metavar="ENGINE")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only parts whose name begins with one of these")
    parser.add_argument("--jobs", type=int, default=10, help="parts at a time (default 10)")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where all rows go (default gpu_check.json)")
    parser.add_argument("--updates", type=int, default=60, help="updates of the demo's model (default 60)")
    parser.add_argument("--most", type=int, default=8, help="reasons printed for a part (default 8)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--skip", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args.engines, args.updates, args.skip, args.out)
        return 0
    start = time.monotonic()
    deadline = start + 60 * args.minutes
    chosen = [p for p in parts(args.engines) if not args.only or p.startswith(tuple(args.only))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda part: measure(part, args.engines, args.updates, Path(folder), deadline), chosen))
    report(results, args.most)
    failed = sum(bool(row["fault"]) for r in results for row in r["rows"])
    total = sum(len(r["rows"]) for r in results)
    unfinished = [r["part"] for r in results if r["note"] and not r["part"].startswith("sanitizer")]
    args.json.write_text(json.dumps({"python": platform.python_version(), "system": platform.platform(), "failed": failed,
                                     "total": total, "results": results}, indent=1), encoding="utf-8")
    sys.stdout.write(f"{total - failed} passed, {failed} failed, {len(unfinished)} parts not finished, "
                     f"{time.monotonic() - start:.0f} s; all rows in {args.json}\n")
    return int(bool(failed or unfinished))


if __name__ == "__main__":
    sys.exit(main())
