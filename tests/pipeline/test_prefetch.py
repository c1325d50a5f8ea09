"""A run whose batches are made ahead by a thread is the run without."""

import dataclasses
import threading

import numpy as np
import pytest

from ember_ml.nn.pipeline.training.config import RunConfig, TrainingConfig
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining


def config(tmp_path, **training):
    (tmp_path / "x.txt").write_text("\n".join("ab" * (i % 13 + 2) + "c" * (i % 5) for i in range(80)))
    return RunConfig(
        data={"kind": "text", "files": str(tmp_path / "x.txt"), "documents": "line", "layout": "packed", "length": 24, "batch": 2,
              "held_out": 0.2, "tokenizer": "characters"},
        model={"head": "dense", "defaults": {"d_input": 8, "norm": "rms_norm"}, "blocks": ["min_gru"]},
        optimizer={"name": "adam", "rate": 1e-2}, training=TrainingConfig(steps=9, log_every=1, **training), backend="numpy")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_same_weights_and_no_thread_left(tmp_path, accumulate):
    plain = SupervisedTraining(config(tmp_path, accumulate=accumulate))
    ahead = SupervisedTraining(config(tmp_path, accumulate=accumulate, prefetch=3))
    expected, found = plain().tensors(), ahead().tensors()
    for name, tensor in expected.items():
        assert np.array_equal(tensor.numpy(), found[name].numpy()), name
    assert plain.trainer.last["eval"] == ahead.trainer.last["eval"]
    assert not [t for t in threading.enumerate() if t.name == "ember-prefetch"]


def test_an_error_of_the_data_ends_the_run(tmp_path):
    run = SupervisedTraining(dataclasses.replace(config(tmp_path, prefetch=2), seed=1))
    whole = run.data.batch

    def broken(i):
        if i == 4:
            raise ValueError("bad sector")
        return whole(i)

    run.trainer.batch = broken
    with pytest.raises(ValueError, match="bad sector"):
        run()
    assert run.trainer.progress.step == 4 and not [t for t in threading.enumerate() if t.name == "ember-prefetch"]
