"""Training: configs, the compiled step, the trainer, the run folder."""

from ember_ml.nn.pipeline.training.config import RunConfig, TrainingConfig, build_optimizer
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.nn.pipeline.training.step import initial_state, make_step
from ember_ml.nn.pipeline.training.trainer import Trainer

__all__ = ["RunConfig", "RunFolder", "Trainer", "TrainingConfig", "build_optimizer", "initial_state", "make_step"]
