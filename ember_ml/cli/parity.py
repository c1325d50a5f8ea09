"""`ember parity`: one model file on every engine, compared."""

from __future__ import annotations

import os
from pathlib import Path

from ember_ml import backend as engines
from ember_ml import data
from ember_ml.cli import card
from ember_ml.cli.generate import existing_model
from ember_ml.cli.output import Output, writable
from ember_ml.nn.pipeline.training.objectives import OBJECTIVES
from ember_ml.nn.pipeline.training.run_folder import put
from ember_ml.parity.run import compare_batch, compare_run
from ember_ml.parity.table import render
from ember_ml.registry.strict_json import dumps

#: of a batch, where a model works on whole sequences
_SEQUENCES = 4


def run(path: Path, length: int, file: Path | None, output: Output) -> int:
    """Compares logits, loss, gradients and, of a language model, generated tokens. Returns the exit code: 1 if a row is out of tolerance."""
    writable(file)
    config, model = existing_model(path)
    source = data.open_source(config.data, config.seed)
    if source.task == "next_token":
        tokens = source.sample(min(length, source.length) + 1)
        rows = compare_run(model, tokens, engines.available(), allowed=source.alphabet.samples)
    else:
        batch = tuple(a[:_SEQUENCES] for a in next(iter(source.held_out())))
        rows = compare_batch(model, batch, OBJECTIVES[source.task].loss, engines.available())
    if file:
        put(file, dumps(rows, indent=1))
    if os.access(path, os.W_OK):                             # for the report and the card
        put(path / "parity.json", dumps(rows, indent=1) + "\n")
        card.write(path)
    failed = [r for r in rows if not r["pass"]]
    output.say(render(rows))
    output.say(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    output.result(rows)
    return 1 if failed else 0
