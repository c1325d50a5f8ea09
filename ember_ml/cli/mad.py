"""`ember mad`: small models on MAD's six tasks, a table of how often they are right, and a plot."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

from ember_ml import backend as engines
from ember_ml.cli.output import Output
from ember_ml.cli.plot import draw_scores
from ember_ml.nn.pipeline.training.probes import ProbeConfig, probe
from ember_ml.registry import to_dict


def run(config: ProbeConfig, out: Path, backend: str | None, output: Output):
    """Trains, prints the table as its columns fill, and writes `out`/mad.json and `out`/mad.png."""
    engine, device = engines.parse(backend)
    scores: dict[str, dict[str, float]] = {}
    out.mkdir(parents=True, exist_ok=True)
    output.say(f"{len(config.layers)} models on {len(config.tasks)} tasks, {config.steps} updates of {config.batch} sequences each, "
               f"on {engine.name}:{device}")

    def watch(row: dict):
        scores.setdefault(row["layers"], {})[row["task"]] = row["accuracy"]
        output.say(f"  {row['layers']:<24} {row['task']:<26} {row['accuracy']:6.1%}   {row['parameters']:>9,} parameters  "
                   f"{row['seconds']:.0f} s")

    with engines.using(f"{engine.name}:{device}"):
        rows = probe(config, watch)
    document = {"config": to_dict(config), "backend": f"{engine.name}:{device}", "rows": rows}
    (out / "mad.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw_scores(scores, list(config.tasks), out / "mad.png")
    table = Table("", *[task.replace("_", " ") for task in config.tasks], "mean")
    for spec, found in sorted(scores.items(), key=lambda s: -sum(s[1].values())):
        values = [found[task] for task in config.tasks]
        table.add_row(spec, *[f"{value:.1%}" for value in (*values, sum(values) / len(values))])
    output.console.print(table)
    output.say(f"{out}/ holds mad.json, mad.png")
    output.result(document)
