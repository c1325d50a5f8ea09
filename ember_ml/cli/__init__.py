"""The command `ember`. Each verb loads what it needs when it is called, so that help stays quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

try:
    import typer
except ImportError:
    sys.exit('ember: the command needs the extra "train"; run: pip install "ember-ml[train]"')

from ember_ml.errors import EmberError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Trains sequence models on a Mac, runs them anywhere, and shows that the results agree.")

Run = Annotated[Path, typer.Argument(help="The folder of a run.")]
Engine = Annotated[Optional[str], typer.Option("--backend", help="Engine, and device: numpy, torch, torch:cuda:0, mlx, cupy.")]


@app.command("train")
def _train(config: Annotated[Path, typer.Argument(help="A TOML file, such as examples/dna_hyena.toml.")],
          out: Annotated[Optional[Path], typer.Option(help="Folder of the run; default runs/<name of the file>.")] = None,
          backend: Engine = None,
          steps: Annotated[Optional[int], typer.Option(help="Number of updates, instead of the file's.")] = None,
          resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
          overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False):
    """Train a model as a file says: live progress, evaluation, checkpoints, a plot."""
    from ember_ml.cli import train
    train.run(config, out or Path("runs") / config.stem, backend, steps, resume, overwrite)


@app.command("generate")
def _generate(run: Run,
             length: Annotated[int, typer.Option(help="Tokens to sample.")] = 200,
             prompt: Annotated[str, typer.Option(help="What to continue.")] = "ATG",
             temperature: Annotated[float, typer.Option(help="Below 1: more likely tokens; 0: the likeliest.")] = 1.0,
             top_k: Annotated[Optional[int], typer.Option(help="Only the k likeliest tokens.")] = None,
             top_p: Annotated[Optional[float], typer.Option(help="Only the likeliest tokens, up to this probability.")] = None,
             repetition: Annotated[float, typer.Option(help="Above 1: tokens that were there already become less likely.")] = 1.0,
             stop: Annotated[Optional[list[str]], typer.Option(help="A text that ends the sample; may be given more than once.")] = None,
             seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
             backend: Engine = None):
    """Sample from a trained model, one step at a time."""
    from ember_ml.cli import generate
    generate.run(run, length, prompt, seed, backend, stop or [], temperature=temperature, top_k=top_k, top_p=top_p,
                 repetition=repetition)


@app.command("parity")
def _parity(run: Run,
           length: Annotated[int, typer.Option(help="Length of the input to compare on.")] = 256,
           json: Annotated[Optional[Path], typer.Option(help="Also write the rows to this file.")] = None):
    """Run one model file on every engine present and compare logits, loss, gradients and generated tokens."""
    from ember_ml.cli import parity
    raise typer.Exit(parity.run(run, length, json))


@app.command("convert")
def _convert(source: Annotated[Path, typer.Argument(help="Folder with config.json and weights.")],
            target: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
            dtype: Annotated[Optional[str], typer.Option(help="float32, float16 or bfloat16; default: as in the checkpoint.")] = None,
            overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False):
    """Read another project's checkpoint and write it as an Ember model."""
    from ember_ml.cli import convert
    convert.run(source, target, dtype, overwrite)


@app.command("mad")
def _mad(layers: Annotated[list[str], typer.Option(help="Models: a layer's name stands for a small stack of it; a+b+c is a stack by name.")],
         more: Annotated[Optional[list[str]], typer.Argument(help="Further models, after --layers and the first one.")] = None,
         tasks: Annotated[Optional[list[str]], typer.Option(help="Only this task; may be given more than once. Default: all six.")] = None,
         steps: Annotated[int, typer.Option(help="Updates.")] = 400,
         batch: Annotated[int, typer.Option(help="Sequences an update.")] = 32,
         rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
         d_input: Annotated[int, typer.Option(help="Channels.")] = 64,
         depth: Annotated[int, typer.Option(help="Layers of a model given by one name, each with a perceptron after it.")] = 2,
         train: Annotated[int, typer.Option(help="Sequences to train on.")] = 3200,
         test: Annotated[int, typer.Option(help="Sequences to judge on.")] = 256,
         seed: Annotated[int, typer.Option(help="Of data, weights and order.")] = 0,
         out: Annotated[Path, typer.Option(help="Folder for mad.json and mad.png.")] = Path("runs/mad"),
         backend: Engine = None):
    """Train small models of any layers on MAD's six synthetic tasks: ember mad --layers hyena mamba self_attention."""
    from ember_ml.cli import mad
    from ember_ml.nn.pipeline.training.probes import ProbeConfig
    chosen = {"tasks": tasks} if tasks else {}
    mad.run(ProbeConfig([*layers, *(more or [])], steps=steps, batch=batch, rate=rate, d_input=d_input, depth=depth, train=train, test=test,
                        seed=seed, **chosen), out, backend)


@app.command("report")
def _report(run: Run, out: Annotated[Optional[Path], typer.Option(help="The page; default experts.html in the run.")] = None):
    """Draw what a run's experts did: load over time, who works on what, who works together."""
    from ember_ml.cli import report
    typer.echo(report.run(run, out))


@app.command("doctor")
def _doctor(selftest: Annotated[bool, typer.Option("--selftest", help="Also run the kernels on the hardware at hand.")] = False,
           json: Annotated[Optional[Path], typer.Option(help="Also write the findings to this file.")] = None):
    """Tell which engines and devices are there, and which path each op takes."""
    from ember_ml.cli import doctor
    raise typer.Exit(doctor.run(selftest, json))


def main():
    """Entry point. What went wrong is told in one line, with exit code 2; Ctrl-C gives 130."""
    try:
        app()
    except EmberError as e:
        sys.stderr.write(f"ember: {e}\n")
        sys.exit(2)
    except FloatingPointError as e:
        sys.stderr.write(f"ember: {e}\n")
        sys.exit(3)
