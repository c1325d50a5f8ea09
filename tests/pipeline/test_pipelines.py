"""Pipelines end to end: train by a configuration, take features out, predict, go on with a text."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.data import Bases
from ember_ml.errors import ShapeError
from ember_ml.nn.pipeline import Completion, FeatureExtraction, Pipeline, Prediction, RunConfig, SupervisedTraining
from ember_ml.registry import from_dict

RNG = np.random.default_rng(3)


def model(**fields):
    return nn.Model.from_config({"blocks": [{"d_input": 8, "layer": "min_gru", "norm": "rms_norm"}], "norm": "rms_norm", **fields}, key=em.random.key(0))


def test_features_are_means_of_hidden_states_of_what_is_real(backend):
    m, x, lengths = model(inputs=3), RNG.normal(size=(7, 5, 3)).astype(np.float32), np.array([5, 1, 3, 5, 2, 4, 5], np.int32)
    h = m.hidden(em.tensor(x))[0].numpy()
    found = Pipeline().add_stage(FeatureExtraction(m, batch=3)).run((x, lengths))
    want = np.stack([row[:n].mean(0) for row, n in zip(h, lengths)])
    assert found.shape == (7, 8) and np.allclose(found.numpy(), want, atol=1e-6)
    assert np.allclose(FeatureExtraction(m)(x).numpy(), h.mean(1), atol=1e-6)
    for wrong in (x[:0], x[0, 0], (x, lengths[:2])):
        with pytest.raises(ShapeError, match="at least one sequence, and one length for each"):
            FeatureExtraction(m)(wrong)


def test_what_the_head_says(backend):
    x, lengths = RNG.normal(size=(5, 4, 3)).astype(np.float32), np.array([4, 2, 1, 3, 4], np.int32)
    m = model(inputs=3, head="classifier", outputs=3)
    p = Prediction(m, batch=2)((x, lengths)).numpy()
    one = np.concatenate([m(em.tensor(x[i:i + 1, :n]))[0].numpy() for i, n in enumerate(lengths)])
    want = np.exp(one) / np.exp(one).sum(1, keepdims=True)
    assert np.allclose(p, want, atol=1e-5) and np.allclose(p.sum(1), 1.0, atol=1e-6)
    m = model(inputs=3, head="regressor", outputs=2)
    assert np.allclose(Prediction(m)(x).numpy(), m(em.tensor(x))[0].numpy(), atol=1e-6)


def test_from_a_configuration_to_texts(tmp_path):
    (tmp_path / "x.fna").write_text(">x\n" + "ACGGT" * 200 + "\n")
    run = from_dict(RunConfig, {
        "data": {"kind": "dna", "fasta": str(tmp_path / "x.fna"), "length": 20, "batch": 4, "held_out": 100}, "backend": "numpy",
        "model": {"blocks": [{"d_input": 16, "layer": "min_gru", "norm": "rms_norm"}], "norm": "rms_norm", "head": "tied"},
        "optimizer": {"name": "adamw", "rate": 0.03}, "training": {"steps": 40}})
    texts = (Pipeline(run).add_stage(SupervisedTraining(run)).add_stage(lambda m: Completion(m, Bases, 7))
             .add_stage(lambda complete: complete(["ACGGTACG", "GGTACGGTAC"]))).run(None)
    assert texts == ["GTACGGT", "GGTACGG"]
