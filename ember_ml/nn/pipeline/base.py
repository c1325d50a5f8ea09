"""Pipeline: stages one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Pipeline:
    """Hands data from stage to stage: `Pipeline().add_stage(read).add_stage(train).run(path)`.

    Args:
        config: anything that the stages want to share; kept as `pipeline.config`.
    """

    def __init__(self, config: Any = None):
        self.config = config
        self.stages: list[Callable] = []

    def add_stage(self, stage: Callable) -> Pipeline:
        """Appends a stage, any function of one argument. Returns the pipeline. Raises TypeError for what is no function."""
        if not callable(stage):
            raise TypeError(f"add_stage: expected a function of one argument, got {type(stage).__name__}")
        self.stages.append(stage)
        return self

    def run(self, data: Any) -> Any:
        """What the last stage returns, each stage given what the one before returned."""
        for stage in self.stages:
            data = stage(data)
        return data
