"""A checkpoint under the original's names becomes a model that computes the original's logits."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ConfigError, WeightsError
from ember_ml.interop import hyena_dna
from ember_ml.nn import HyenaDNAConfig
from tests.golden.case import DATA, Case
from tests.golden.hyena import filter_options

CASE = Case(DATA / "hyena" / "hyenadna_lm")


def config():
    c = CASE.config
    return HyenaDNAConfig(c["vocab_size"], c["d_model"], c["n_layer"], c["l_max"], d_inner=c["d_inner"],
                          filter={"width": c["filter_order"], **filter_options(c)}, vocab_multiple=c["pad_vocab_size_multiple"])


def test_reads_an_original_state_dict(backend):
    model = hyena_dna.read({k: em.tensor(w) for k, w in CASE.weights.items()}, config(), order_last=True)
    logits, _ = model(em.tensor(CASE.inputs["input_ids"].astype(np.int32)))
    np.testing.assert_allclose(logits.numpy(), CASE.expected["logits"], rtol=1e-4, atol=2e-4)


def test_a_missing_tensor_is_named():
    with em.using("numpy"):
        state = {k: em.tensor(w) for k, w in CASE.weights.items() if not k.endswith("ln_f.bias")}
        with pytest.raises(WeightsError, match="backbone.ln_f.bias"):
            hyena_dna.read(state, config())


def test_a_shift_that_is_no_number_is_refused():
    config = {"d_model": 4, "n_layer": 1, "vocab_size": 5, "layer": {"l_max": 8, "shift": "x"}}
    with pytest.raises(ConfigError, match=r"hyena_dna's layer: expected shift to be a finite number; received 'x'"):
        hyena_dna.model_config(config)
    assert hyena_dna.model_config({**config, "layer": {"l_max": 8, "shift": 0.5}})[0].filter["shift"] == 0.5
