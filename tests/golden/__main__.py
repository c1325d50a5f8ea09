"""`python -m tests.golden DIR`: every case below DIR on every engine; exit code 1 if one fails."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.golden.case import DATA, find, left_out
from tests.golden.runner import run_all


def main() -> int:
    from ember_ml.backend import available

    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Golden cases on every engine.")
    parser.add_argument("folder", nargs="?", type=Path, default=DATA, help="cases at or below it (default: all)")
    parser.add_argument("--engines", nargs="+", metavar="ENGINE",
                        help='such as "numpy torch:cuda" (default: every engine that loads here)')
    args = parser.parse_args()
    if not find(args.folder):
        parser.error(f"expected a folder with cases (a case.json each), got {args.folder}")
    passed = failed = 0
    for result in run_all(args.folder, args.engines or available()):
        print(result, flush=True)
        passed, failed = passed + result.passed, failed + (not result.passed)
    for case in find(args.folder):
        if reason := left_out(case):
            print(f"left  {case.key:<36} not run: {reason}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
