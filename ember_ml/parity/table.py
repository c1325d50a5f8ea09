"""Rows of a comparison as a plain text table."""

from __future__ import annotations

from ember_ml.parity.compare import Row


def render(rows: list[Row]) -> str:
    """One line per row: engine, quantity, error, tolerance, ok or FAILED; columns aligned.

    Where the rows have several cases or dtypes, each line begins with its case and dtype.
    """
    several = len({(r["case"], r["dtype"]) for r in rows}) > 1
    head = (*(("case", "dtype") if several else ()), "engine", "quantity", "error", "tolerance", "")
    lines = [head] + [(*((r["case"], r["dtype"]) if several else ()), r["engine"], r["quantity"], _number(r["error"]),
                       _number(r["tolerance"]), "ok" if r["pass"] else "FAILED") for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def _number(x) -> str:
    return f"{x:.1e}" if isinstance(x, float) else str(x)
