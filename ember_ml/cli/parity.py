"""`ember parity`: one model file on every engine, compared."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from ember_ml import backend as engines
from ember_ml import data
from ember_ml.cli.generate import existing_model
from ember_ml.parity.run import compare_run
from ember_ml.parity.table import render


def run(path: Path, length: int, json_path: Path | None) -> int:
    """Compares logits, loss, gradients and generated tokens. Returns the exit code: 1 if a row is out of tolerance."""
    config, file = existing_model(path)
    source = data.open_source(config.data, config.seed)
    rows = compare_run(file, source.sample(min(length, source.length) + 1), engines.available(), allowed=source.alphabet.samples)
    if json_path:
        json_path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    failed = [r for r in rows if not r["pass"]]
    console = Console(highlight=False, soft_wrap=True)
    console.print(render(rows), markup=False)
    console.print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
