"""`ember report`: a run on one HTML page that holds its images and needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import jinja2

from ember_ml.cli import facts
from ember_ml.cli.experts import routers
from ember_ml.cli.output import writable
from ember_ml.cli.plot import curves, plt
from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training.run_folder import put

_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2em 1em .2em 0; text-align: right; } td:first-child, th:first-child { text-align: left; }
tr.this td { font-weight: 600; } .failed { color: #a00; font-weight: 600; } pre { background: #f6f6f4; padding: 1em; overflow-x: auto; }
figure { display: inline-block; margin: 1em 1em 1em 0; vertical-align: top; } figcaption { color: #555; } img { max-width: 100%; }
</style></head><body>
<h1>{{ name }}</h1>
<table>
{% for key, value in about %}
<tr><td>{{ key }}</td><td style="text-align: left">{{ value }}</td></tr>
{% endfor %}
</table>
{% if scores %}
<h2>Held-out data</h2>
<table><tr><th></th><th>{{ score }}</th></tr>
{% for row in scores %}
<tr{% if row.this %} class="this"{% endif %}><td>{{ row.name }}</td><td>{{ row.value }}</td></tr>
{% endfor %}
</table>
{% endif %}
<h2>Curves</h2>
<figure><img alt="curves" src="data:image/png;base64,{{ curves }}"></figure>
{% if metrics %}
<h2>Metrics</h2>
<table><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in metrics %}
<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if parity %}
<h2>Parity</h2>
<table><tr><th>engine</th><th>quantity</th><th>error</th><th>tolerance</th><th></th></tr>
{% for r in parity %}
<tr><td>{{ r.engine }}</td><td>{{ r.quantity }}</td><td>{{ r.error }}</td><td>{{ r.tolerance }}</td>
<td{% if not r.pass %} class="failed"{% endif %}>{{ "ok" if r.pass else "FAILED" }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if routers %}
<h2>Experts</h2>
<p>Balanced, a load has coefficient of variation 0; undecided, a router has entropy 1.</p>
<table><tr><th>router</th><th>experts</th><th>CV of the load</th><th>dead</th><th>entropy</th><th>information on the class</th></tr>
{% for r in routers %}
<tr><td>{{ r.name }}</td><td>{{ r.experts }}</td><td>{{ r.cv }}</td><td>{{ r.dead }}</td><td>{{ r.entropy }}</td>
<td>{{ r.information }}</td></tr>
{% endfor %}
</table>
{% for r in routers %}
<section><h3>{{ r.name }}</h3>
{% for f in r.figures %}
<figure><img alt="{{ f.title }}" src="data:image/png;base64,{{ f.png }}"><figcaption>{{ f.title }}</figcaption></figure>
{% endfor %}
</section>
{% endfor %}
{% endif %}
<h2>Configuration</h2>
<pre>{{ config }}</pre>
</body></html>
""")

#: columns of the table of metrics, beside the scores: what they are called, and how a number is written
_COLUMNS = {"loss": ("loss", "{:.4f}".format), "rate": ("rate", "{:.2e}".format), "grad_norm": ("gradient norm", "{:.3f}".format),
            "tokens_per_second": ("tokens/s", "{:,.0f}".format), "memory": ("peak memory, MiB", lambda n: f"{n / 2**20:,.0f}")}
#: lines of that table at most
_LINES = 40


def run(folder: Path, out: Path | None) -> Path:
    """Writes the page of a run, by default report.html in its folder, and returns where it is.

    Raises ConfigError for a folder that holds no run, or one without a logged update.
    """
    writable(out)
    known = facts.read(folder)
    if not any("loss" in r for r in known.rows):
        raise ConfigError(f"{folder}: metrics.jsonl holds no update yet; train first")
    columns, metrics = _metrics(known)
    page = _PAGE.render(name=known.folder.resolve().name, about=known.about(), score=known.score, scores=_scores(known), columns=columns,
                        metrics=metrics, curves=_png(curves(known.rows, known.baselines, known.unit)),
                        parity=[{**r, "error": _number(r["error"]), "tolerance": _number(r["tolerance"])} for r in known.parity],
                        routers=routers(known.rows, _figure), config=known.config)
    out = out or known.folder / "report.html"
    put(out, page)
    return out


def _scores(known: facts.Facts) -> list[dict[str, Any]]:
    if not known.scores:
        return []
    own = next(iter(known.scores.values()))
    found = sorted([(value, name) for name, value in known.baselines.items()] + [(own, "this model")],
                   key=lambda b: (not math.isnan(b[0]), b), reverse=True)
    return [{"name": name, "value": f"{value:.4f}", "this": name == "this model"} for value, name in found]


def _metrics(known: facts.Facts) -> tuple[list[str], list[list[str]]]:
    """The table of evaluations: its head, and a line for each (of many, an even choice), with the update's own numbers."""
    chosen = known.evaluations
    if len(chosen) > _LINES:
        chosen = [chosen[i * (len(chosen) - 1) // (_LINES - 1)] for i in range(_LINES)]
    updates = {r["step"]: r for r in known.rows if "loss" in r}
    names = [name for name in _COLUMNS if any(name in updates.get(r["step"], {}) for r in chosen)]
    scores, lines = list(dict.fromkeys(name for r in chosen for name in r["eval"])), []
    for r in chosen:
        update = updates.get(r["step"], {})
        lines.append([f"{r['step']:,}", *(f"{r['eval'][n]:.4f}" if n in r["eval"] else "" for n in scores),
                      *(_COLUMNS[n][1](update[n]) if n in update else "" for n in names)])
    return ["update", *scores, *(_COLUMNS[n][0] for n in names)], lines


def _number(x) -> str:
    return "not finite" if x is None else f"{x:.1e}" if isinstance(x, float) else str(x)


def _figure(title: str, draw) -> dict[str, str]:
    figure, axes = plt.subplots(figsize=(5.5, 3.6), dpi=110)
    draw(axes)
    figure.tight_layout()
    return {"title": title, "png": _png(figure)}


def _png(figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()
