"""`python -m tests.array_api CHECKOUT`: the public suite on every engine; exit code 1 where a test fails that no xfails file names."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.array_api.suite import by_module, check_checkout, keep_counts, label, left_out, run, xfails


def main() -> int:
    from ember_ml.backend import available, get

    parser = argparse.ArgumentParser(prog="python -m tests.array_api", description="The array API suite on every engine.")
    parser.add_argument("checkout", type=Path, help="of data-apis/array-api-tests, with its submodule")
    parser.add_argument("--engines", nargs="+", metavar="ENGINE", help="default: every engine that loads here")
    parser.add_argument("-k", dest="select", default="", help="only tests that pytest's -k selects; then no counts are kept")
    args = parser.parse_args()
    checkout = args.checkout.expanduser().resolve()
    check_checkout(checkout)
    unknown = False
    for engine in args.engines or available():
        outcomes = run(engine, checkout, args.select)
        name = label(engine)
        known, failed = xfails(name), [test for test, outcome in outcomes.items() if outcome == "failed"]
        absent = left_out(engine)
        without = f" (without {', '.join(absent)})" if absent else ""
        print(f"\n{name}{without}\n{'module':<36}{'passed':>8}{'failed':>8}")
        for module, count in by_module(outcomes).items():
            print(f"{module:<36}{count['passed']:>8}{count['failed']:>8}")
        print(f"{'total':<36}{sum(o == 'passed' for o in outcomes.values()):>8}{len(failed):>8}", flush=True)
        for test in failed:
            if test not in known:
                unknown = True
                print(f"not in xfails_{name}.txt: {test}")
        for test in known:
            if outcomes.get(test) == "passed":
                print(f"passes now, take it out of xfails_{name}.txt: {test}")
        if not args.select:
            keep_counts(engine, outcomes, checkout, get(engine).runtime.describe()["version"])
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
