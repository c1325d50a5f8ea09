"""The checkpoints of a run: the newest ones and the best one, each a whole training state in one file.

    checkpoints/step-200.safetensors     parameters, buffers, optimiser, key, and in the metadata where the run stood
    checkpoints/last.safetensors         a link to the newest
    checkpoints/best.safetensors         a link to the one with the best evaluation
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from ember_ml import weights
from ember_ml.autodiff import tree
from ember_ml.errors import WeightsError
from ember_ml.nn.pipeline.training.progress import Progress

_NAME = re.compile(r"step-(\d+)\.safetensors")


class Checkpoints:
    """Saves, finds and removes checkpoints in a folder.

    Args:
        path: the folder; made at the first save. keep: how many of the newest stay, beside the best.
    """

    def __init__(self, path: Path, keep: int = 2):
        self.path, self.keep = path, keep

    def steps(self) -> list[int]:
        """The updates that there are checkpoints of, in order."""
        if not self.path.is_dir():
            return []
        return sorted(int(found[1]) for p in self.path.iterdir() if (found := _NAME.fullmatch(p.name)))

    def file(self, step: int) -> Path:
        """Where the checkpoint of that update is."""
        return self.path / f"step-{step}.safetensors"

    def newest(self) -> Path | None:
        """The newest checkpoint's file, None without any."""
        steps = self.steps()
        return self.file(steps[-1]) if steps else None

    def save(self, state: dict, progress: Progress) -> Path:
        """Writes the state, atomically: after a crash the file is there whole, or not at all. Then tidies up.

        Returns the file. Raises OSError; the checkpoints before stay.
        """
        self.path.mkdir(exist_ok=True)
        path = self.file(progress.step)
        weights.save_tree(path, state, metadata={"progress": progress.to_text()}, checksum=True)
        self.tidy(progress)
        return path

    def tidy(self, progress: Progress):
        """Links the newest and the best checkpoint of a run that stands there, and removes what is too much."""
        self._point("last", progress.step)
        if progress.best is not None and self.file(progress.best).exists():
            self._point("best", progress.best)
        else:
            (self.path / "best.safetensors").unlink(missing_ok=True)
        kept = {*self.steps()[-self.keep:], progress.step, progress.best}
        for step in self.steps():
            if step not in kept:
                self.file(step).unlink()

    def load(self, template: dict, device: str, step: int | None = None) -> tuple[dict, Progress]:
        """(state, progress) of the newest whole checkpoint, or of that of an update; the state has the form of `template`.

        A damaged one is passed over with a warning and set aside as `NAME.damaged`, so that the run goes on from the one before.

        Raises WeightsError if there is no whole one, or if the newest that is whole does not fit the model.
        """
        reason = "holds no checkpoint"
        for candidate in reversed(self.steps() if step is None else [step]):
            path = self.file(candidate)
            try:
                tensors, _, metadata = weights.load(path, device=device)
                progress = Progress.from_text(metadata.get("progress", ""), path)
            except WeightsError as e:
                reason = f"holds no whole checkpoint; of the oldest: {e}"
                if step is None:
                    warnings.warn(f"resume: {e}; it is set aside, and the checkpoint before it is taken", stacklevel=3)
                    path.rename(path.with_name(path.name + ".damaged"))
                continue
            expected = tree.named(template)
            weights.check({name: (t.shape, t.dtype) for name, t in expected.items()},
                          {name: (t.shape, t.dtype) for name, t in tensors.items()}, path)
            return tree.unflatten(tree.flatten(template)[1], [tensors[name] for name in expected]), progress
        raise WeightsError(f"{self.path}: {reason}")

    def _point(self, name: str, step: int):
        link, temporary = self.path / f"{name}.safetensors", self.path / f".{name}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.file(step).name)
        os.replace(temporary, link)
