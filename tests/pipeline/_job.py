"""A small training run in a process of its own, to be killed: python _job.py FOLDER FASTA ENGINE [resume]."""

import sys
import time

from ember_ml.nn.pipeline.training import Callback, RunConfig, RunFolder
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry import from_dict

STEPS = 14


def run_config(fasta: str, engine: str) -> RunConfig:
    """Dropout, a 4-expert mixture with a balance bias, and Hyena, compiled where the engine can."""
    blocks = [{"d_input": 8, "layer": "hyena", "layer_config": {"l_max": 16, "filter": {"width": 4}}, "norm": "layer_norm",
               "dropout": 0.2},
              {"d_input": 8, "layer": "moe", "layer_config": {"num_experts": 4, "k": 2, "expert_config": {"d_inner": 8}}, "norm": "layer_norm"}]
    return from_dict(RunConfig, {
        "data": {"kind": "dna", "fasta": fasta, "length": 16, "batch": 2, "held_out": 100},
        "model": {"family": "model", "blocks": blocks, "norm": "layer_norm", "head": "tied"},
        "optimizer": {"name": "adamw", "rate": {"peak": 0.01, "warmup": 2, "total": STEPS}},
        "training": {"steps": STEPS, "log_every": 1, "eval_every": 5, "checkpoint_every": 3, "compile": engine != "numpy"},
        "seed": 3, "backend": engine})


class Pause(Callback):
    """Waits after each row, so that a test finds the time to kill."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def step(self, row):
        time.sleep(self.seconds)


def main(folder: str, fasta: str, engine: str, resume: bool, pause: float):
    run = run_config(fasta, engine)
    place = RunFolder(folder, resume=resume)
    stage = SupervisedTraining(run, place, resume, [Pause(pause)])
    configs.write(place.config, run)
    stage().save(place.model)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], "resume" in sys.argv, 0.05 if "slowly" in sys.argv else 0.0)
