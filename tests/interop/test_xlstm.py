"""An xLSTM state dict under its own names and configuration becomes a model that computes the original's logits."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import WeightsError
from ember_ml.interop import xlstm
from tests.golden.case import DATA, Case
from tests.golden.xlstm import stack_config

LM, LARGE = Case(DATA / "xlstm" / "lm_step"), Case(DATA / "xlstm" / "large_model_stateful")


def state_of(case, change=lambda w: w):
    return {k: em.tensor(w) for k, w in change(dict(case.weights)).items()}


def test_reads_a_language_model(backend):
    model = xlstm.read(state_of(LM), stack_config(LM.config))
    tokens = em.tensor(LM.inputs["input_ids"].astype(np.int32))
    # the recurrent form, since that is where Ember adds eps too
    np.testing.assert_allclose(model(tokens)[0].numpy(), LM.expected["logits_steps"], rtol=1e-4, atol=5e-5)


def fused(w):
    """The large model's other layout: q, k, v, o and the gates of a layer in one matrix each."""
    for i in range(LARGE.config["num_blocks"]):
        at, ffn = f"backbone.blocks.{i}.mlstm_layer.", f"backbone.blocks.{i}.ffn."
        w[at + "qkv_opreact.weight"] = np.concatenate([w.pop(f"{at}{n}.weight") for n in ("q", "k", "v", "ogate_preact")])
        for part in ("weight", "bias"):
            w[f"{at}ifgate_preact.{part}"] = np.concatenate([w.pop(f"{at}{n}gate_preact.{part}") for n in "if"])
        w[ffn + "proj_up_gate_z.weight"] = np.concatenate([w.pop(f"{ffn}{n}.weight") for n in ("proj_up_gate", "proj_up")])
    return w


@pytest.mark.parametrize("layout", [lambda w: w, fused], ids=["single", "fused"])
def test_reads_the_large_model(backend, layout):
    model = xlstm.read(state_of(LARGE, layout), {"embedding_dim": LARGE.config["D"], **LARGE.config})
    logits, _ = model(em.tensor(LARGE.inputs["input_ids"].astype(np.int32)))
    np.testing.assert_allclose(logits.numpy(), LARGE.expected["logits_parallel"], rtol=1e-4, atol=5e-5)


def test_what_is_missing_and_what_has_no_place_is_named():
    with em.using("numpy"):
        state = state_of(LM)
        name = "xlstm_block_stack.blocks.1.xlstm.zgate.weight"
        with pytest.raises(WeightsError, match=f"expected a tensor '{name}'"):
            xlstm.read({k: w for k, w in state.items() if k != name}, stack_config(LM.config))
        with pytest.raises(WeightsError, match="xlstm_block_stack.blocks.9.more, which a model of this configuration has no place for"):
            xlstm.read(state | {"xlstm_block_stack.blocks.9.more": state[name]}, stack_config(LM.config))
