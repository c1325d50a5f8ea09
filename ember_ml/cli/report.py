"""`ember report`: what the experts of a run did, on one HTML page that holds its images and needs nothing else."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend must be chosen first

from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training.run_folder import RunFolder

_PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Experts of {{ run }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2em 1em .2em 0; text-align: right; } td:first-child, th:first-child { text-align: left; }
figure { display: inline-block; margin: 1em 1em 1em 0; vertical-align: top; } figcaption { color: #555; } img { max-width: 100%; }
</style></head><body>
<h1>Experts of {{ run }}</h1>
<p>{{ steps }} updates. Balanced, a load has coefficient of variation 0; undecided, a router has entropy 1.</p>
<table><tr><th>router</th><th>experts</th><th>CV of the load</th><th>dead</th><th>entropy</th><th>information on the class</th></tr>
{% for r in routers %}<tr><td>{{ r.name }}</td><td>{{ r.experts }}</td><td>{{ r.cv }}</td><td>{{ r.dead }}</td><td>{{ r.entropy }}</td>
<td>{{ r.information }}</td></tr>
{% endfor %}</table>
{% for r in routers %}<section><h2>{{ r.name }}</h2>
{% for f in r.figures %}<figure><img alt="{{ f.title }}" src="data:image/png;base64,{{ f.png }}"><figcaption>{{ f.title }}</figcaption></figure>
{% endfor %}</section>
{% endfor %}</body></html>
""")


def run(folder: Path, out: Path | None) -> Path:
    """Writes the page of a run, by default experts.html in its folder, and returns where it is.

    Raises ConfigError for a folder that holds no run, or one whose model has no mixture of experts.
    """
    run = RunFolder.existing(folder)
    rows = [r for r in run.rows() if "loss" in r]
    names = sorted({key.rpartition(".load")[0] for row in rows for key in row if key.endswith(".load") or key == "load"})
    if not names:
        raise ConfigError(f"{folder}: has no expert's load in metrics.jsonl; expected a run of a model with a layer 'moe'")
    page = _PAGE.render(run=run.path.name, steps=rows[-1]["step"], routers=[_router(name, rows) for name in names])
    out = out or run.path / "experts.html"
    out.write_text(page, encoding="utf-8")
    return out


def _router(name: str, rows: list[dict]) -> dict:
    """What the page says of one router."""
    def series(what):
        key = f"{name}.{what}".lstrip(".")
        return [(row["step"], row[key]) for row in rows if key in row]

    def last(what, form="{:.3f}"):
        found = series(what)
        return form.format(found[-1][1]) if found else ""

    load, figures = series("load"), []
    figures.append(_figure("load over time", lambda axes: _lines(axes, load)))
    figures.append(_figure("entropy and coefficient of variation", lambda axes: _two(axes, series("entropy"), series("load_cv"))))
    for what, title, label in (("classes", "expert by class of token", "class"), ("coactivation", "co-activation", "expert")):
        if found := series(what):
            figures.append(_figure(title, lambda axes, m=found[-1][1], label=label: _heat(axes, m, label)))
    return {"name": name or "router", "experts": len(load[-1][1]), "cv": last("load_cv"), "dead": last("dead", "{:.0%}"),
            "entropy": last("entropy"), "information": last("information"), "figures": figures}


def _figure(title: str, draw) -> dict[str, str]:
    figure, axes = plt.subplots(figsize=(5.5, 3.6), dpi=110)
    draw(axes)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return {"title": title, "png": base64.b64encode(file.getvalue()).decode()}


def _lines(axes, load):
    steps, shares = zip(*load)
    axes.stackplot(steps, *zip(*shares), linewidth=0)
    axes.set(xlabel="updates", ylabel="share of the rows, by expert", ylim=(0.0, 1.0))


def _two(axes, entropy, cv):
    for series, label in ((entropy, "routing entropy"), (cv, "CV of the load")):
        if series:
            axes.plot(*zip(*series), label=label)
    axes.set(xlabel="updates", ylim=(0.0, None))
    axes.legend(frameon=False)


def _heat(axes, matrix, label):
    totals = [sum(row) or 1.0 for row in matrix] if label == "class" else [1.0] * len(matrix)
    image = axes.imshow([[v / t for v in row] for row, t in zip(matrix, totals)], aspect="auto", cmap="viridis")
    axes.set(xlabel=label, ylabel="expert")
    axes.figure.colorbar(image, ax=axes)
