"""`ember train`: a run from a file, with progress, evaluation beside baselines, and a plot."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from ember_ml import backend as engines
from ember_ml.cli.display import TrainingDisplay
from ember_ml.cli.plot import draw_loss
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.interrupt import Interrupted
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining


def run(path: Path, out: Path, backend: str | None, steps: int | None, resume: bool, overwrite: bool):
    """Trains as the file says and fills the folder `out`."""
    run = configs.replaced(configs.read(path), backend=backend, steps=steps)
    engine, device = engines.parse(run.backend)
    run = configs.replaced(run, backend=f"{engine.name}:{device}")
    folder = RunFolder(out, resume, overwrite)
    stage = SupervisedTraining(run, folder, resume)
    configs.write(folder.config, run)
    display = TrainingDisplay(stage.trainer.config.steps, stage.data.unit, 10 * run.training.log_every)
    stage.trainer.callbacks.append(display)
    console = display.console
    console.print(f"{run.model.get('family', 'model')} of {stage.model.count():,} parameters on {run.backend}, "
                  f"{stage.data.describe()}")
    try:
        model = stage()
    except Interrupted as e:
        sys.stderr.write(f"ember: {e}\n")
        raise typer.Exit(130) from None
    model.save(folder.model)
    baselines = stage.data.baselines()
    draw_loss(folder.rows(), baselines, stage.data.unit, folder.plot)
    final = next(r for r in reversed(folder.rows()) if "eval" in r)
    console.print(f"\nheld-out bits per {stage.data.unit}")
    for name, bits in sorted([*baselines.items(), ("this model", final["eval"]["bits"])], key=lambda b: -b[1]):
        console.print(f"  {name:<28} {bits:.4f}")
    console.print(f"trained for {final['seconds']:.0f} s; {folder.path}/ holds model.safetensors, metrics.jsonl, loss.png, "
                  "config.toml")
