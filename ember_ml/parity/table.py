"""Rows of comparisons as plain text tables."""

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


#: columns of a table of ops
DTYPES = ("float32", "float16", "bfloat16", "float64", "complex64", "complex128", "int32", "int64", "uint32", "bool")


def cells(rows: list[Row]) -> dict[tuple[str, str, str], Row]:
    """(op, place, dtype) -> the row that is worst: failed before passed, then by its share of the tolerance. Its key "of" counts the rows.

    A place is an engine, with the machine's name where the rows are of several.
    """
    several, worst = len({r.get("machine") for r in rows}) > 1, {}
    for r in rows:
        key = (r["op"], f"{r['engine']}, {r['machine']}" if several else r["engine"], r["dtype"])
        old = worst.get(key)
        worst[key] = {**(r if old is None or _badness(r) > _badness(old) else old), "of": 1 if old is None else old["of"] + 1}
    return worst


def _badness(r: Row) -> tuple:
    error = r["error"]
    return (not r["pass"], isinstance(error, str), 0.0 if isinstance(error, str) else error / (r["tolerance"] or 1.0), "gradient" in r["quantity"])


def shown(cell: Row | None, usual: float) -> str:
    """A cell of the table of ops: the largest error in eps, or in per cent of the elements where they are integers; with its tolerance
    where that is not the usual one."""
    if cell is None:
        return ""
    if isinstance(cell["error"], str):
        return "FAILED"
    text = f"{cell['error']:.1f}" if cell["tolerance"] else "0" if not cell["error"] else f"{100 * cell['error']:.0f}%"
    text = f"{text} of {cell['tolerance']:g}" if usual and cell["tolerance"] not in (0.0, usual) else text
    return text if cell["pass"] else f"FAILED {text}"


def usual_tolerances(found: dict[tuple[str, str, str], Row]) -> dict[str, float]:
    """dtype -> the smallest tolerance among the cells that have one."""
    allowed = {d: [c["tolerance"] for key, c in found.items() if key[2] == d and c["tolerance"]] for d in DTYPES}
    return {d: min(values, default=0.0) for d, values in allowed.items() if any(key[2] == d for key in found)}


def render_ops(rows: list[Row]) -> str:
    """The table op x place x dtype: one line per op and place, the largest error of its rows in each dtype, in eps of the dtype."""
    found = cells(rows)
    usual = usual_tolerances(found)
    lines = [("op", "engine", *usual), ("", "at most", *(f"{u:g}" for u in usual.values()))]
    lines += [(*key, *(shown(found.get((*key, d)), u) for d, u in usual.items())) for key in dict.fromkeys(k[:2] for k in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


def _number(x) -> str:
    return f"{x:.1e}" if isinstance(x, float) else str(x)
