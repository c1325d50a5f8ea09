"""State dicts of StripedHyena and Evo 2 under their own names and configurations become models that compute the originals' logits."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ConfigError, WeightsError
from ember_ml.interop import striped_hyena
from tests.golden.case import DATA, Case

CASES = [Case(DATA / "stripedhyena" / name) for name in ("model", "evo2_model")]


def state_of(case):
    return {k: em.tensor(w) for k, w in case.weights.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_reads_an_original_state_dict(backend, case):
    model = striped_hyena.read(state_of(case), case.config)
    logits, _ = model(em.tensor(case.inputs["input_ids"].astype(np.int32)))
    np.testing.assert_allclose(logits.numpy(), case.expected["logits"], rtol=1e-4, atol=1e-4)


def test_channels_are_found_whatever_the_original_does_to_them_at_run_time():
    """Every way to lay out the gates, against the original's own order of cutting."""
    width, heads = 8, 2
    for interleave in (False, True):
        for split in (False, True):
            for flip in (False, True):
                c = {"hidden_size": width, "num_attention_heads": heads, "interleave": interleave, "column_split_hyena": split, "hyena_flip_x1x2": flip}
                z = np.arange(3 * width)
                z = np.concatenate([z[i::3] for i in range(3)]) if interleave else z
                if split:
                    block = z.reshape(heads, -1)
                    n = width // heads
                    x2, x1, v = (block[:, a:a + n].reshape(-1) for a in (0, n, 2 * n))
                else:
                    x2, x1, v = z[:width], z[width:2 * width], z[2 * width:]
                want = np.concatenate([x1, x2, v] if flip else [x2, x1, v])
                np.testing.assert_array_equal(striped_hyena.channel_order(c), want)


def test_the_order_of_the_taps_follows_their_number():
    """Vortex cuts its filters in two ways: below 128 taps the last one meets the present, from there on the first one."""
    c = CASES[1].config
    short, medium = (striped_hyena.filter_config(c, kind) for kind in ("hcs", "hcm"))
    assert (short.order, short.skip, medium.order, medium.skip) == ("corr", False, "conv", True)


def test_what_is_missing_and_what_has_no_place_is_named():
    case = CASES[0]
    with em.using("numpy"):
        state = state_of(case)
        with pytest.raises(WeightsError, match="expected a tensor 'blocks.2.filter.poles'"):
            striped_hyena.read({k: w for k, w in state.items() if k != "blocks.2.filter.poles"}, case.config)
        with pytest.raises(WeightsError, match="blocks.2.filter.more, which a model of this configuration has no place for"):
            striped_hyena.read(state | {"blocks.2.filter.more": state["norm.scale"]}, case.config)
        with pytest.raises(ConfigError, match="final_norm=True"):
            striped_hyena.read(state, case.config | {"final_norm": False})
