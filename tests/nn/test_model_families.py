"""xLSTM and StripedHyena as models: their lists of blocks, decoding in constant memory, files, misuse."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError
from ember_ml.nn.layers import RoPEConfig
from ember_ml.nn.layers.sequence_mixing.attention.rope import rotate
from tests.nn._help import close, get

STRIPED = nn.StripedHyenaConfig(11, 8, ["hyena_se", "hyena_mr", "hyena_li", "hyena_modal", "attention"], heads=2, kv_heads=1, modes=3, filters=4,
                                se_taps=4, mr_taps=9, d_inner=5, later_activation="identity")
FAMILIES = {"xlstm": (nn.XLSTM, nn.XLSTMConfig(8, 3, [1], 11, heads=2, multiple_of=8, slstm_heads=2)),
            "xlstm_large": (nn.XLSTMLarge, nn.XLSTMLargeConfig(11, 8, 2, heads=2, multiple_of=8)),
            "striped_hyena": (nn.StripedHyena, STRIPED)}


@pytest.fixture(params=FAMILIES)
def model(request, backend):
    family, config = FAMILIES[request.param]
    return family(config, key=em.random.key(1))


def tokens(length=12):
    return em.tensor(np.random.default_rng(0).integers(0, 11, (2, length)).astype(np.int32))


def test_prefill_and_steps_give_the_logits_of_the_whole(model):
    x = tokens()
    whole, _ = model(x)
    y, state = model(x[:, :5], model.initial_state(2))
    close(y, get(whole)[:, :5], 1e-4)
    for t in range(5, 12):
        y, state = model.step(x[:, t], state)
        close(y, get(whole)[:, t], 1e-4)


def test_the_state_does_not_grow_but_for_attention(model):
    def sizes(length):
        _, state = model(tokens(length), model.initial_state(2))
        return {name: t.shape for name, t in em.tree.named(state).items() if isinstance(t, em.EmberTensor)}

    short, long = sizes(3), sizes(12)
    grown = {name for name in short if short[name] != long[name]}
    assert grown == ({"8.k", "8.v"} if isinstance(model, nn.StripedHyena) else set())


def test_a_file_brings_the_model_back(model, tmp_path):
    model.save(tmp_path / "m.safetensors")
    again = nn.Model.load(tmp_path / "m.safetensors")
    assert again(tokens())[0].tolist() == model(tokens())[0].tolist()


def test_gradients_reach_every_parameter(model):
    run = nn.value_and_grad(model, lambda m, x: nn.losses.cross_entropy(m(x[:, :-1])[0], x[:, 1:]))
    _, grads = run(model.parameters(), model.buffers(), None, tokens())
    assert all(np.abs(get(g)).max() > 0 for g in grads.values())


def test_misuse_is_told():
    with em.using("numpy"):
        with pytest.raises(ConfigError, match=r"slstm_at to name blocks 0 to 1, received \[2\]"):
            nn.XLSTM(nn.XLSTMConfig(8, 2, [2]))
        with pytest.raises(ConfigError, match="heads and block to divide the 16 inner channels"):
            nn.XLSTM(nn.XLSTMConfig(8, 1, heads=3, multiple_of=8))
        with pytest.raises(ConfigError, match="filters to divide d_input = 6, received 4"):
            nn.StripedHyena(nn.StripedHyenaConfig(11, 6, ["hyena_se"], filters=4))
        with pytest.raises(ConfigError, match="mixers.0: expected 'hyena_se'"):
            nn.StripedHyenaConfig(11, 6, ["hyena"])
        with pytest.raises(ConfigError, match="expected 2 rates, one for each pair of the 4 channels that turn, received 3"):
            rotate(em.ops.zeros((1, 1, 3, 4)), em.ops.arange(3).reshape(1, 3), RoPEConfig(rates=[1.0, 0.5, 0.1]))
