"""`ember mad`: small models on MAD's six tasks, a table of how often they are right, and a plot."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

from rich.table import Table

from ember_ml import backend as engines
from ember_ml.cli.output import Output, writable
from ember_ml.cli.plot import draw_scores
from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training.interrupt import Interrupted
from ember_ml.nn.pipeline.training.probes import ProbeConfig, blocks, probe
from ember_ml.nn.pipeline.training.run_folder import make_folder, storing, unmake
from ember_ml.registry import from_dict, to_dict
from ember_ml.weights.atomic import replace


def run(config: ProbeConfig, out: Path, backend: str | None, resume: bool, overwrite: bool, output: Output):
    """Trains, tells each row as it comes, and prints the table; `out`/mad.json holds every row from its end on, `out`/mad.png the plot.

    With `resume`, the rows that mad.json holds are not trained again, and its models and tasks come before those of `config`.

    Raises ConfigError if there is a mad.json and neither `resume` nor `overwrite` is given, or one that was made otherwise,
    RegistryError for a layer that there is not; then nothing was trained or written.
    """
    for spec in config.layers:
        blocks(spec, config, 1)                            # a name that there is not is told before hours of others' training
    engine, device = engines.parse(backend)
    where, path, rows = f"{engine.name}:{device}", out / "mad.json", []
    if resume and overwrite:
        raise ConfigError(f"{path}: expected --resume or --overwrite, received both: one keeps what the other deletes")
    if path.exists() and not overwrite:
        if not resume:
            raise ConfigError(f"{path}: already there; give --resume to keep its rows and train what is missing, --overwrite to replace it, "
                              "or another folder with --out")
        config, rows = _continued(path, config, where)
    elif resume and not path.exists():
        raise ConfigError(f"{path}: there is nothing to resume; start without --resume")
    made = make_folder(out)
    count, begin = len(config.layers) * len(config.tasks), len(rows)
    output.say(f"{_many(config.layers, 'model')} on {_many(config.tasks, 'task')}, {config.steps} updates of {config.batch} sequences each, "
               f"on {where}" + (f"; {begin} of {count} are there already" if begin else ""))
    start = time.perf_counter()

    def document() -> dict:
        return {"config": to_dict(config), "backend": where, "rows": rows}

    def watch(row: dict):
        rows.append(row)
        with storing(path):
            replace(path, [json.dumps(document(), indent=1).encode() + b"\n"])
        left = (time.perf_counter() - start) / (len(rows) - begin) * (count - len(rows))
        output.say(f"  {row['layers']:<24} {row['task']:<26} {row['accuracy']:6.1%}   {row['parameters']:>9,} parameters  "
                   f"{row['seconds']:.0f} s{'   diverged' if row['loss'] is None else ''}   {len(rows)}/{count}, {left:.0f} s left")

    try:
        writable(path)
        with engines.using(where):
            probe(config, watch, list(rows))
    except KeyboardInterrupt:
        raise Interrupted(f"mad: interrupted; {len(rows)} of {count} rows are in {path}; the same command with --resume goes on"
                          if rows else "mad: interrupted before the first row; nothing was written") from None
    finally:
        unmake(made)                                         # where no row came of it
    scores = {spec: {row["task"]: row["accuracy"] for row in rows if row["layers"] == spec} for spec in config.layers}
    with storing(out / "mad.png"):
        draw_scores(scores, list(config.tasks), out / "mad.png")
    table = Table("", *[task.replace("_", " ") for task in config.tasks], "mean")
    for spec, found in sorted(scores.items(), key=lambda s: -sum(s[1].values())):
        values = [found[task] for task in config.tasks]
        table.add_row(spec, *[f"{value:.1%}" for value in (*values, sum(values) / len(values))])
    output.console.print(table)
    output.say(f"trained for {sum(row['seconds'] for row in rows):.0f} s; {out}/ holds mad.json, mad.png")
    output.result(document())


def _many(of: list, what: str) -> str:
    return f"{len(of)} {what}{'' if len(of) == 1 else 's'}"


def _continued(path: Path, config: ProbeConfig, where: str) -> tuple[ProbeConfig, list[dict]]:
    """The config of all that is there and asked for, and the rows that are there. Raises ConfigError if they would not compare."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        before, rows = from_dict(ProbeConfig, kept["config"]), kept["rows"]
        made = {**to_dict(before), "backend": kept["backend"]}
        if {key for row in rows for key in ("layers", "task", "accuracy", "loss", "parameters", "seconds") if key not in row}:
            raise KeyError("rows")
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path}: is no table of ember mad ({type(e).__name__}: {e}); give --overwrite to replace it") from None
    asked = {**to_dict(config), "backend": where}
    other = [f"{key} {made[key]}, now {asked[key]}" for key in asked if key not in ("layers", "tasks") and made[key] != asked[key]]
    if other:
        raise ConfigError(f"{path}: was made with {'; '.join(other)}: the rows would not compare; use the same, --overwrite or another --out")
    return dataclasses.replace(config, layers=[*dict.fromkeys([*before.layers, *config.layers])],
                               tasks=[*dict.fromkeys([*before.tasks, *config.tasks])]), rows
