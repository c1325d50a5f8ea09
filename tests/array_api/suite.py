"""Runs of the public suite data-apis/array-api-tests on one engine, and what is known to fail in them.

`xfails_<engine>.txt` holds one failure a line, `test id  # reason`. `counts.json` is what the last runs came to:

    {"standard": "2025.12", "suite": <commit of the checkout>, "examples": 20,
     "engines": {label of the engine: {"version": <of the engine's library>, "left_out": [dtypes that the engine does not declare],
                          "passed": n, "failed": n, "skipped": n,
                          "modules": {module: {"passed": n, "failed": n, "skipped": n}}}}}

Skipped are tests of dtypes that are left out, and of parts of the standard that are optional.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
COUNTS = HERE / "counts.json"
EXAMPLES = 20


def check_checkout(checkout: Path):
    """Raises SystemExit with what to do where the folder is no whole checkout of the suite."""
    if not (checkout / "array_api_tests").is_dir():
        raise SystemExit(f"array-api: expected a checkout of data-apis/array-api-tests, got {checkout}; "
                         "git clone --recurse-submodules https://github.com/data-apis/array-api-tests, then make array-api ARRAY_API_TESTS=<it>")
    if not (checkout / "array-api" / "spec").is_dir():
        raise SystemExit(f"array-api: {checkout} lacks its submodule; run git -C {checkout} submodule update --init")


def left_out(engine: str) -> list[str]:
    """The standard's dtypes that the engine's namespace does not declare."""
    from ember_ml.ops.standard import namespace
    every = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128".split()
    declared = namespace(engine).__array_namespace_info__().dtypes()
    return [name for name in every if name not in declared]


def label(engine: str) -> str:
    """What the engine is called in counts.json and in names of xfails files: "torch", or "torch-cuda" where its default device is a GPU."""
    from ember_ml.backend import get
    kind = get(engine).default_device.partition(":")[0]
    return engine if kind == "cpu" or engine == "cupy" else f"{engine}-{kind}"


def run(engine: str, checkout: Path, select: str = "") -> dict[str, str]:
    """Test id -> "passed", "failed" or "skipped", of the whole suite or of the tests that `select` (pytest's -k) names."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        env = {
            **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH")))),
            "EMBER_ARRAY_API_RECORD": str(record), "MLX_ENABLE_TF32": "0",
            "ARRAY_API_TESTS_MODULE": f"exec('import ember_ml; xp = ember_ml.namespace(\"{engine}\")')",
            "ARRAY_API_TESTS_VERSION": "2025.12", "ARRAY_API_TESTS_SKIP_DTYPES": ",".join(left_out(engine)),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "tests.array_api.record",
                   "--max-examples", str(EXAMPLES), "--derandomize", "--disable-deadline", *(["-k", select] if select else []), "array_api_tests"]
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
        (Path(tempfile.gettempdir()) / f"array-api-{engine}.log").write_text(done.stdout + done.stderr)
        if not record.exists():
            raise SystemExit(f"array-api: the suite did not start on {engine}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.loads(record.read_text())


def module_of(test: str) -> str:
    """array_api_tests/test_linalg.py::test_inv -> linalg."""
    return test.partition("::")[0].rpartition("/")[2].removeprefix("test_").removesuffix(".py").removesuffix("_functions")


def by_module(outcomes: dict[str, str]) -> dict[str, Counter]:
    """Module -> how many of its tests passed, failed, were skipped."""
    counts: dict[str, Counter] = {}
    for test, outcome in outcomes.items():
        counts.setdefault(module_of(test), Counter())[outcome] += 1
    return dict(sorted(counts.items()))


def xfails(engine: str) -> dict[str, str]:
    """Test id -> reason, of the failures that are known; `engine` as in `label`."""
    path = HERE / f"xfails_{engine}.txt"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.strip() and not line.startswith("#"):
            test, _, reason = line.partition("  # ")
            found[test.strip()] = reason.strip()
    return found


def keep_counts(engine: str, outcomes: dict[str, str], checkout: Path, version: str):
    """Writes the engine's part of counts.json; the other engines' parts stay."""
    kept = json.loads(COUNTS.read_text()) if COUNTS.exists() else {"engines": {}}
    commit = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    modules = {name: {k: count[k] for k in ("passed", "failed", "skipped")} for name, count in by_module(outcomes).items()}
    total = {k: sum(m[k] for m in modules.values()) for k in ("passed", "failed", "skipped")}
    engines = {**kept["engines"], label(engine): {"version": version, "left_out": left_out(engine), **total, "modules": modules}}
    COUNTS.write_text(json.dumps({"standard": "2025.12", "suite": commit, "examples": EXAMPLES, "engines": engines}, indent=1) + "\n")
