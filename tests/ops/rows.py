"""Rows of a comparison as assertions."""

from ember_ml.parity import render


def check(rows):
    """Every row passes, and there is one."""
    failed = [r for r in rows if not r["pass"]]
    assert rows and not failed, "\n" + render(failed)
