"""`ember train`: a run from a file, with progress, evaluation beside baselines, curves and a model card."""

from __future__ import annotations

from pathlib import Path

from ember_ml.cli import card, facts
from ember_ml.cli.display import TrainingDisplay, scores
from ember_ml.cli.logs import CsvLog, TensorBoardLog
from ember_ml.cli.output import Output
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.config import RunConfig
from ember_ml.nn.pipeline.training.run_folder import RunFolder, storing
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry import to_dict
from ember_ml.registry.files import to_toml


def rehearse(run: RunConfig, output: Output):
    """Builds data, model and optimiser, tells the whole config and what they are, and writes nothing."""
    stage = SupervisedTraining(run)
    output.say(to_toml(to_dict(run)))
    summary = stage.model.summary(stage.data.batch(0)[0].shape[1])
    output.say(str(summary))
    output.say(_headline(run, stage))
    output.say(f"{stage.trainer.config.steps} updates; nothing was trained or written. What it will take: ember plan CONFIG")
    output.result({**facts.summarize(run, stage), "config": to_dict(run), "steps": stage.trainer.config.steps,
                   "parts": [row._asdict() for row in (*summary.rows, summary.total)]})


def run(run: RunConfig, out: Path, resume: bool, overwrite: bool, output: Output, tensorboard: bool = False):
    """Trains as the config says and fills the folder `out`."""
    logs = [TensorBoardLog(out / "tensorboard")] if tensorboard else []
    folder = RunFolder(out, resume, overwrite)
    with folder.lock.held():                                 # until the model and its card are written, or something fails
        _fill(folder, run, resume, logs, output)


def _fill(folder: RunFolder, run: RunConfig, resume: bool, logs: list, output: Output):
    from ember_ml.cli.plot import draw_curves                # matplotlib, which a rehearsal need not wait for
    stage = SupervisedTraining(run, folder, resume, [CsvLog(folder), *logs])
    done, steps = stage.trainer.progress.step, stage.trainer.config.steps
    data, bits = stage.data, stage.data.task == "next_token"
    stage.trainer.callbacks.append(TrainingDisplay(steps, data.unit, bits, 10 * run.training.log_every, output))
    with storing(folder.config):
        configs.write(folder.config, stage.run)
    summary = facts.summarize(run, stage)
    facts.write_summary(folder, summary)
    output.say(_headline(run, stage))
    if stage.trainer.done:
        output.say(f"nothing is left to train: {done} updates are done, of {steps}; --steps N goes on")
    model = stage()
    if stage.fused is not None:
        output.say(f"LoRA fused: a divergence of {stage.fused.changed:.1e} nats from the adapted model (without LoRA {stage.fused.without:.1e}); "
                   f"{folder.path}/adapter/ holds it as peft's files")
    with storing(folder.model):
        model.save(folder.model)
    (folder.path / "parity.json").unlink(missing_ok=True)    # of the model before, if the run was resumed
    known = facts.read(folder.path)
    final, chosen = known.evaluations[-1], stage.trainer.progress.best if run.training.final == "best" else None
    judged = next((row for row in known.evaluations if row["step"] == chosen), final)        # of the weights that the model has
    summary |= {"steps": final["step"], "seconds": final["seconds"], "held_out": judged["eval"], "baselines": data.baselines()}
    facts.write_summary(folder, summary)
    draw_curves(known.rows, summary["baselines"], data.unit, folder.plot)
    card.write(folder.path)
    output.say()
    scores(output, judged["eval"], summary["baselines"], data.unit)
    output.say(f"trained for {final['seconds']:.0f} s; {folder.path}/ holds model.safetensors, model_card.md, metrics.jsonl, metrics.csv, "
               "loss.png, config.toml")
    output.result({"run": str(folder.path), **summary})


def _headline(run: RunConfig, stage: SupervisedTraining) -> str:
    every, trained = stage.model.count(), sum(p.size for p in stage.model.parameters(trainable=True).values())
    some = "" if trained == every else f", {trained:,} of them trained ({trained / every:.2%}),"
    lora = run.adapter.lora if run.adapter else None
    scale = "" if lora is None else f" LoRA of rank {lora.rank} counts {lora.scale():.3g} times,"
    started = "" if stage.report is None else f"\nfrom {run.adapter.weights}: {stage.report}"
    name = run.model.get("file") or run.model.get("family", "model")
    return f"{name} of {every:,} parameters{some}{scale} on {run.backend}, {stage.data.describe()}{started}"
