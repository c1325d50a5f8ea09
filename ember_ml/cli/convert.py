"""`ember convert`: another project's checkpoint as an Ember model."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ember_ml.interop.convert import convert


def run(source: Path, target: Path, dtype: str | None, overwrite: bool):
    """Writes the model and prints what it is made of."""
    model = convert(source, target, dtype, overwrite)
    console = Console(highlight=False, soft_wrap=True)
    console.print(str(model.summary()), markup=False)
    console.print(f"{target}: {model.count():,} parameters", markup=False)
