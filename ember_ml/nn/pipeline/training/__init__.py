"""Training: configs, objectives, the compiled step, the trainer, its callbacks, the run folder."""

from ember_ml.nn.pipeline.training.callbacks import Callback, Rows
from ember_ml.nn.pipeline.training.config import RunConfig, TrainingConfig, build_optimizer
from ember_ml.nn.pipeline.training.objectives import OBJECTIVES, Objective
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.nn.pipeline.training.step import initial_state, make_step
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.nn.pipeline.training.trainer import Trainer

__all__ = ["OBJECTIVES", "Callback", "Objective", "Rows", "RunConfig", "RunFolder", "SupervisedTraining", "Trainer", "TrainingConfig",
           "build_optimizer", "initial_state", "make_step"]
