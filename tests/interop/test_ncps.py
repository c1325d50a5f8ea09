"""An ncps state dict under its own names becomes a layer that computes the original's outputs."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import WeightsError
from ember_ml.interop import ncps
from tests.golden.case import DATA, Case
from tests.golden.liquid import layer_of

NAMES = ("ltc_sequence_autoncp", "ltc_sequence_mixed_memory", "cfc_mixed_memory", "cfc_pure", "wired_cfc")


def state_of(case):
    return {k: em.tensor(w) for k, w in case.weights.items()}


@pytest.mark.parametrize("name", NAMES)
def test_reads_an_original_state_dict(backend, name):
    case = Case(DATA / "liquid" / name)
    layer = ncps.read(state_of(case), layer_of(case).config)
    np.testing.assert_allclose(layer(em.tensor(case.inputs["x"]))[0].numpy(), case.expected["y_zero_state"], rtol=1e-4, atol=2e-5)


def test_what_is_missing_and_what_has_no_place_is_named():
    case = Case(DATA / "liquid" / "cfc_default")
    with em.using("numpy"):
        config, state = layer_of(case).config, state_of(case)
        with pytest.raises(WeightsError, match="expected a tensor 'rnn_cell.time_a.weight'"):
            ncps.read({k: w for k, w in state.items() if k != "rnn_cell.time_a.weight"}, config)
        with pytest.raises(WeightsError, match="fc.weight, which a CfC of this config has no place for"):
            ncps.read(state | {"fc.weight": state["rnn_cell.ff1.weight"]}, config)
