"""`ember convert`: another project's checkpoint as an Ember model."""

from __future__ import annotations

from pathlib import Path

from ember_ml.cli.output import Output
from ember_ml.interop.convert import convert


def run(source: Path, target: Path, dtype: str | None, overwrite: bool, output: Output):
    """Writes the model and prints what it is made of."""
    model = convert(source, target, dtype, overwrite)
    summary = model.summary()
    output.say(str(summary))
    output.say(f"{target}: {model.count():,} parameters")
    output.result({"file": str(target), "parameters": model.count(), "parts": [row._asdict() for row in (*summary.rows, summary.total)]})
