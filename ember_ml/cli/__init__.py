"""The command `ember`. Each verb loads what it needs when it is called, so that help stays quick.

Exit codes: 0 done; 1 a comparison or self-test failed, or a plan does not fit; 2 what was asked cannot be done: arguments, files, configs,
packages, memory; 3 training met a loss that is no number; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn, Optional

try:
    import typer
except ImportError:
    sys.exit('ember: the command needs the extra "train"; run: pip install "ember-ml[train]"')

from ember_ml.errors import EmberError, OutOfMemory, is_out_of_memory

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Trains sequence models on a Mac, runs them anywhere, and shows that the results agree.",
                  epilog="Exit codes: 0 done, 1 a comparison or self-test failed or a plan does not fit, 2 it cannot be done as asked, 3 the loss "
                         "is no number, 130 Ctrl-C.")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, such as examples/dna_hyena.toml.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Engine = Annotated[Optional[str], typer.Option("--backend", metavar="ENGINE",
                                               help="Engine, and device: numpy, torch, torch:cuda:0, mlx, cupy.")]
Sets = Annotated[Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE",
                                                   help="Change a value of the file: training.steps=100. May be given more than once.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output; lines go to standard error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what is there.")]


@app.command("train")
def _train(config: Config, sets: Sets = None,
           out: Annotated[Optional[Path], typer.Option(help="Folder of the run; default runs/<name of the file>.")] = None,
           backend: Engine = None,
           steps: Annotated[Optional[int], typer.Option(help="Updates: short for --set training.steps=N.")] = None,
           resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
           overwrite: Overwrite = False,
           dry_run: Annotated[bool, typer.Option("--dry-run", help="Build model and data, tell what they are, write nothing.")] = False,
           tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard.")] = False,
           json: Json = False):
    """Train a model as a file says."""
    from ember_ml.cli import train
    from ember_ml.cli.output import Output
    from ember_ml.cli.overrides import read
    run = read(config, [*(sets or []), *([] if steps is None else [f"training.steps={steps}"])], backend)
    if dry_run:
        train.rehearse(run, Output(json))
        return
    try:
        train.run(run, out or Path("runs") / config.stem, resume, overwrite, Output(json), tensorboard)
    except KeyboardInterrupt as e:                           # the trainer's own says what was saved, and how to go on
        _fail(str(e) or "interrupted", 130)


@app.command("eval")
def _eval(run: Run,
          data: Annotated[Optional[Path], typer.Option(metavar="FILE", help="A TOML file whose [data] is evaluated on instead.")] = None,
          sets: Sets = None, backend: Engine = None, json: Json = False):
    """Evaluate a model on held-out data, beside baselines."""
    from ember_ml.cli import evaluate
    from ember_ml.cli.output import Output
    evaluate.run(run, data, sets or [], backend, Output(json))


@app.command("generate")
def _generate(run: Run,
              length: Annotated[int, typer.Option(min=1, help="Tokens to sample.")] = 200,
              prompt: Annotated[Optional[str], typer.Option(help="What to continue; default ATG for DNA, else held-out text.")] = None,
              temperature: Annotated[float, typer.Option(help="Below 1: more likely tokens; 0: the likeliest.")] = 1.0,
              top_k: Annotated[Optional[int], typer.Option(help="Only the k likeliest tokens.")] = None,
              top_p: Annotated[Optional[float], typer.Option(help="Only the likeliest tokens, up to this probability.")] = None,
              repetition: Annotated[float, typer.Option(help="Above 1: tokens that were there already become less likely.")] = 1.0,
              stop: Annotated[Optional[list[str]], typer.Option(help="A text that ends the sample; may be given more than once.")] = None,
              seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
              backend: Engine = None, json: Json = False):
    """Sample from a trained model, one step at a time."""
    from ember_ml.cli import generate
    from ember_ml.cli.output import Output
    generate.run(run, length, prompt, seed, backend, stop or [], Output(json), temperature=temperature, top_k=top_k, top_p=top_p,
                 repetition=repetition)


@app.command("parity")
def _parity(runs: Annotated[Optional[list[Path]], typer.Argument(metavar="RUN", help="The folder of a run; with --merge, files.")] = None,
            length: Annotated[int, typer.Option(min=1, help="Length of the input to compare on.")] = 256,
            ops: Annotated[bool, typer.Option("--ops", help="Compare every op instead of a model.")] = False,
            merge: Annotated[bool, typer.Option("--merge", help="Join files that --ops wrote on several machines: --merge a.json b.json.")] = False,
            out: Annotated[Optional[Path], typer.Option(help="Also write the rows to this file, as JSON.")] = None,
            json: Json = False):
    """Compare a model on every engine present, or every op.

    A model's logits, loss, gradients and generated tokens, against NumPy in float64. With --ops the values and gradients of every op
    in every dtype, as a table, one HTML page and JSON.
    """
    from ember_ml.cli.output import Output
    if ops or merge:
        from ember_ml.cli import parity_ops
        if ops and (merge or runs):
            _fail("parity --ops: takes neither a run nor --merge", 2)
        raise typer.Exit(parity_ops.join(runs or [], out, Output(json)) if merge else parity_ops.run(out, Output(json)))
    if len(runs or []) != 1:
        _fail("parity: expected the folder of one run, or --ops, or --merge with files", 2)
    from ember_ml.cli import parity
    raise typer.Exit(parity.run(runs[0], length, out, Output(json)))


@app.command("convert")
def _convert(source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder with config.json and weights.")],
             target: Annotated[Path, typer.Argument(metavar="TARGET", help="File to write, .safetensors.")],
             dtype: Annotated[Optional[str], typer.Option(help="float32, float16 or bfloat16; default: as in the checkpoint.")] = None,
             overwrite: Overwrite = False, json: Json = False):
    """Turn another project's checkpoint into an Ember model."""
    from ember_ml.cli import convert
    from ember_ml.cli.output import Output
    convert.run(source, target, dtype, overwrite, Output(json))


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
         resume: Annotated[bool, typer.Option("--resume", help="Keep the rows that are in it, train what is missing.")] = False,
         overwrite: Overwrite = False,
         backend: Engine = None, json: Json = False):
    """Train small models on six probe tasks.

    MAD's synthetic tasks, for models of any layers: ember mad --layers hyena mamba self_attention.
    """
    from ember_ml.cli import mad
    from ember_ml.cli.output import Output
    from ember_ml.nn.pipeline.training.probes import ProbeConfig
    chosen = {"tasks": tasks} if tasks else {}
    config = ProbeConfig([*layers, *(more or [])], steps=steps, batch=batch, rate=rate, d_input=d_input, depth=depth, train=train, test=test,
                         seed=seed, **chosen)
    try:
        mad.run(config, out, backend, resume, overwrite, Output(json))
    except KeyboardInterrupt as e:                           # says what is there, and how to go on
        _fail(str(e) or "interrupted", 130)


@app.command("report")
def _report(run: Run, out: Annotated[Optional[Path], typer.Option(help="The page; default report.html in the run.")] = None,
            json: Json = False):
    """Write a run's page: curves, metrics, parity, experts."""
    from ember_ml.cli import report
    from ember_ml.cli.output import Output
    output, page = Output(json), report.run(run, out)
    output.say(str(page))
    output.result({"page": str(page)})


@app.command("plan")
def _plan(config: Config, sets: Sets = None, backend: Engine = None,
          probe: Annotated[bool, typer.Option("--probe", help="Also train a few updates: time of one, memory.")] = False,
          json: Json = False):
    """Tell what a run will take: numbers, FLOPs, memory."""
    from ember_ml.cli import plan
    from ember_ml.cli.output import Output
    from ember_ml.cli.overrides import read
    raise typer.Exit(plan.run(read(config, sets, backend), probe, Output(json)))


@app.command("data")
def _data(config: Config, sets: Sets = None, json: Json = False):
    """Tell what is in the data of a config."""
    from ember_ml.cli import data
    from ember_ml.cli.output import Output
    data.run(config, sets or [], Output(json))


@app.command("doctor")
def _doctor(selftest: Annotated[bool, typer.Option("--selftest", help="Also run the kernels on the hardware at hand.")] = False,
            out: Annotated[Optional[Path], typer.Option(help="Also write the findings to this file, as JSON.")] = None,
            json: Json = False):
    """Tell engines, devices, and which path each op takes."""
    from ember_ml.cli import doctor
    from ember_ml.cli.output import Output
    raise typer.Exit(doctor.run(selftest, out, Output(json)))


#: what a run needs less memory by
_LESS = "lower data.batch or data.length, or set training.recompute; ember plan CONFIG tells what fits"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: runs the command line, by default this process's own, and exits. What went wrong is told in one line."""
    try:
        app(arguments, prog_name="ember")
    except EmberError as e:
        _fail(f"{e}; {_LESS}" if isinstance(e, OutOfMemory) else str(e), 2)
    except OSError as e:                                     # a file that cannot be read or written, a full disk
        _fail(f"{e.filename}: {e.strerror}" if e.filename is not None else str(e), 2)
    except FloatingPointError as e:
        _fail(str(e), 3)
    except (MemoryError, RuntimeError) as e:                 # torch and MLX raise RuntimeErrors when memory is at its end
        if not is_out_of_memory(e):
            raise
        _fail(f"out of memory ({str(e).splitlines()[0] if str(e) else type(e).__name__}); {_LESS}", 2)


def _fail(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"ember: {text}\n")
    sys.exit(code)
