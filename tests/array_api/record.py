"""A pytest plugin that writes what became of each test, for runs of the public suite: {"test id": "passed" | "failed" | "skipped"}.

The file's path is in EMBER_ARRAY_API_RECORD. A test that fails in its setup or teardown has failed.
"""

import json
import os

OUTCOMES: dict[str, str] = {}


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = "failed" if OUTCOMES.get(report.nodeid) == "failed" else report.outcome


def pytest_sessionfinish(session):
    with open(os.environ["EMBER_ARRAY_API_RECORD"], "w") as file:
        json.dump(OUTCOMES, file)
