"""`ember parity --ops` and `--merge`: every op on every engine and device, in every dtype, as a table, a page and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

import ember_ml
from ember_ml.cli.output import Output, writable
from ember_ml.errors import ConfigError
from ember_ml.parity.document import document, merge, places, read, write
from ember_ml.parity.table import cells, render_ops, shown, usual_tolerances

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Parity of the ops</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; } th, td { padding: .15em .6em; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; } thead th { border-bottom: 1px solid #999; }
td.ok { background: #e8f3e8; } td.failed { background: #f6d5d5; font-weight: 600; } .first { border-left: 1px solid #bbb; }
tbody tr:hover td { outline: 1px solid #ccc; }
</style></head><body>
<h1>Parity of the ops</h1>
<p>{{ passed }} comparisons passed, {{ failed|length }} failed, over {{ ops|length }} ops. A cell is the largest error of an op's values and
gradients in units of the dtype's eps, relative to the largest number that is right; integers: the share of them that differ. Right is the
definition in NumPy's float64, and the tape's gradient there. Point at a cell for the comparison behind it.</p>
<table><tr><th>machine</th><th>Ember</th><th>Python</th><th>engines</th></tr>
{% for m in machines %}
<tr><td>{{ m.name }}</td><td>{{ m.ember }}</td><td>{{ m.python }}</td><td style="text-align: left">{{ m.engines }}</td></tr>
{% endfor %}
</table>
{% if failed %}
<h2>Failed</h2>
<table><tr><th>op</th><th>engine</th><th>dtype</th><th>what</th><th>error</th><th>at most</th></tr>
{% for r in failed %}
<tr><td>{{ r.case }}</td><td>{{ r.engine }}</td><td>{{ r.dtype }}</td><td>{{ r.quantity }}</td><td>{{ r.error }}</td><td>{{ r.tolerance }}</td></tr>
{% endfor %}
</table>
{% endif %}
<h2>Ops</h2>
<table><thead>
<tr><th></th>{% for p in places %}<th class="first" colspan="{{ p.dtypes|length }}">{{ p.name }}</th>{% endfor %}</tr>
<tr><th>op</th>{% for p in places %}{% for d in p.dtypes %}<th{% if loop.first %} class="first"{% endif %}>{{ d }}</th>{% endfor %}{% endfor %}</tr>
<tr><th>at most</th>{% for p in places %}{% for d in p.dtypes %}<th{% if loop.first %} class="first"{% endif %}>{{ "%g"|format(usual[d]) }}</th>
{% endfor %}{% endfor %}</tr>
</thead><tbody>
{% for op in ops %}
<tr><td>{{ op }}</td>{% for p in places %}{% for d in p.dtypes %}{% set c = found.get((op, p.name, d)) %}
<td class="{{ 'first ' if loop.first }}{{ '' if c is none else 'ok' if c.pass else 'failed' }}"
{% if c is not none %} title="{{ c.of }} comparisons; worst: {{ c.case }}, {{ c.quantity }}: {{ c.error }}"{% endif %}>{{ shown(c, usual[d]) }}</td>
{% endfor %}{% endfor %}</tr>
{% endfor %}
</tbody></table>
</body></html>
""")


def run(out: Path | None, output: Output) -> int:
    """Compares, prints the table, writes JSON to `out` (default parity-ops.json) and a page beside it. Returns the exit code."""
    writable(out)
    from ember_ml.parity.cases import CASES
    from ember_ml.parity.ops import compare_ops
    where, seen = places(), [0]
    output.say(f"{len(CASES)} rows of ops on {', '.join(where)} ...")
    with output.console.status("") as status:
        def told(case):
            seen[0] += 1
            status.update(f"{seen[0]} of {len(CASES)}: {case.id}")
        rows = compare_ops(CASES, where, told if output.live else None)
    return _tell(document(rows, ember_ml.__version__), out or Path("parity-ops.json"), output)


def join(files: list[Path], out: Path | None, output: Output) -> int:
    """The results of several machines in one table, page and file (default parity-merged.json). Returns the exit code."""
    writable(out)
    if len(files) < 2:
        raise ConfigError(f"parity --merge: expected at least two files that `ember parity --ops` wrote, got {len(files)}")
    return _tell(merge([read(f) for f in files]), out or Path("parity-merged.json"), output)


def _tell(found: dict[str, Any], out: Path, output: Output) -> int:
    rows = found["rows"]
    failed = [r for r in rows if not r["pass"]]
    html = out.with_suffix(".html")
    write(found, out)
    html.write_text(page(found), encoding="utf-8")
    output.say(render_ops(rows))
    for r in failed:
        output.say(f"FAILED {r['case']}, {r['engine']}, {r['dtype']}, {r['quantity']}: {r['error']} (at most {r['tolerance']:g})")
    output.say(f"{len(rows) - len(failed)} passed, {len(failed)} failed; written to {out} and {html}")
    output.result({"passed": len(rows) - len(failed), "failed": failed, "file": str(out), "page": str(html)})
    return 1 if failed else 0


def page(found: dict[str, Any]) -> str:
    """The HTML page of a document: one table, an op a line, all dtypes of each engine side by side."""
    rows = found["rows"]
    table = cells(rows)
    usual, there = usual_tolerances(table), {key[1:] for key in table}
    columns = [{"name": name, "dtypes": [d for d in usual if (name, d) in there]} for name in dict.fromkeys(key[1] for key in table)]
    machines = [{"name": name, "ember": about.get("ember"), "python": about.get("python"),
                 "engines": ", ".join(f"{e} {facts.get('version', '')}" for e, facts in about.get("engines", {}).items())}
                for name, about in found["machines"].items() if isinstance(about, dict)]
    failed = [r for r in rows if not r["pass"]]
    return _PAGE.render(passed=len(rows) - len(failed), failed=failed, machines=machines, ops=list(dict.fromkeys(r["op"] for r in rows)),
                        places=columns, found=table, shown=shown, usual=usual)
