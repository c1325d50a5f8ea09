"""A small training run that is killed at a line of its own code: python _job.py ENGINE FASTA [compile], then orders on standard input.

An order is a line of JSON, {"folder", "resume", "kill"}. Each is carried out in a fork of this process, which spares it the imports, and is
answered by a line, {"status", "places"}: how it ended, and the file of every line of the trainer and the savers that it ran. `kill` is the
number of such a line: just before it, the process sends SIGKILL to itself. So every moment between two lines can be chosen, also in the
middle of a save.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from ember_ml import backend, weights
from ember_ml.nn.pipeline import training
from ember_ml.nn.pipeline.training import RunConfig, RunFolder
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry import from_dict

STEPS = 14
WATCHED = {str(path): path.name for package in (training, weights) for path in Path(package.__file__).parent.glob("*.py")
           if path.name in ("trainer.py", "checkpoints.py", "run_folder.py", "atomic.py", "guard.py")}


def run_config(fasta: str, engine: str, compile: bool | None) -> RunConfig:
    """Dropout, a 4-expert mixture with a balance bias, Hyena, a schedule and a moving average; the data go by three times.

    With `compile` a single block: torch takes minutes for the others.
    """
    blocks = [{"d_input": 8, "layer": "hyena", "layer_config": {"l_max": 16, "filter": {"width": 4}}, "norm": "layer_norm",
               "dropout": 0.2},
              {"d_input": 8, "layer": "moe", "layer_config": {"num_experts": 4, "k": 2, "expert_config": {"d_inner": 8}}, "norm": "layer_norm"}]
    if compile:
        blocks = [{"d_input": 8, "layer": "mlp", "layer_config": {"d_inner": 8}, "dropout": 0.2}]
    return from_dict(RunConfig, {
        "data": {"kind": "dna", "fasta": fasta, "length": 16, "batch": 2, "held_out": 100},
        "model": {"family": "model", "blocks": blocks, "norm": "layer_norm", "head": "tied"},
        "optimizer": {"name": "adamw", "rate": {"peak": 0.01, "warmup": 2, "total": STEPS}},
        "training": {"steps": STEPS, "log_every": 1, "eval_every": 5, "checkpoint_every": 3, "ema": 0.9, "compile": compile},
        "seed": 3, "backend": engine})


def train(run: RunConfig, folder: str, resume: bool):
    """What the command does: config, training, model."""
    place = RunFolder(folder, resume=resume)
    stage = SupervisedTraining(run, place, resume)
    configs.write(place.config, run)
    stage().save(place.model)


def watch(kill: int | None) -> list[str]:
    """Lists the file of each watched line that is about to run, and kills the process before number `kill`."""
    places: list[str] = []

    def line(frame, event, arg):
        if event == "line":
            if len(places) == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            places.append(WATCHED[frame.f_code.co_filename])
        return line

    sys.settrace(lambda frame, event, arg: line if frame.f_code.co_filename in WATCHED else None)
    return places


def serve(engine: str, fasta: str, compile: str | None = None):
    backend.get(engine)
    run = run_config(fasta, engine, compile and True)
    for order in map(json.loads, sys.stdin):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                places = watch(order["kill"])
                train(run, order["folder"], order["resume"])
                sys.settrace(None)
                os.write(write, " ".join(places).encode())
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(write)
        with open(read) as answer:
            places = answer.read().split()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(json.dumps({"status": status, "places": places}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
