"""Wirings as data; masks that hold through training; times between positions; errors that say what to do."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn.layers import LTC, NCP, AutoNCP, CfC, CfCConfig, FullyConnected, LTCConfig, RandomWiring, WiredCfC, WiredCfCConfig
from ember_ml.nn.optimizers import AdamW, AdamWConfig
from tests.nn._help import close, get, numbers, put

WIRING = AutoNCP(units=12, d_output=3)


def test_wirings_are_those_of_ncps_for_any_size():
    theirs = pytest.importorskip("ncps.wirings", reason="the original, to compare with")
    pairs = [(FullyConnected(5, 2, False, 3), theirs.FullyConnected(5, 2, 3, False)), (RandomWiring(7, 3, 0.3, 5), theirs.Random(7, 3, 0.3, 5)),
             (NCP(9, 4, 2, 1, 1, 6, 2, 7), theirs.NCP(9, 4, 2, 1, 1, 6, 2, 7)), (AutoNCP(30, 5, 0.7, 1), theirs.AutoNCP(30, 5, 0.7, 1))]
    for config, original in pairs:
        made = config.build(4)
        original.build(4)
        np.testing.assert_array_equal(made.synapses, original.adjacency_matrix)
        np.testing.assert_array_equal(made.sensory, original.sensory_adjacency_matrix)
        assert made.outputs == original.output_dim
        assert [list(layer) for layer in made.layers] == [list(original.get_neurons_of_layer(i)) for i in range(original.num_layers)]


@pytest.mark.parametrize("make, says", [(lambda: NCP(3, 2, 1, 4, 1, 1, 1).build(2), "sensory_fanout of at most the 3 inter neurons"),
                                        (lambda: NCP(3, 2, 1, 1, 1, 1, 3).build(2), "motor_fanin of at most the 2 command neurons"),
                                        (lambda: AutoNCP(5, 3).build(2), "d_output below units - 2 = 3, received 3"),
                                        (lambda: FullyConnected(4, 5).build(2), "d_output of at most units = 4, received 5"),
                                        (lambda: RandomWiring(4, sparsity=1.0), "sparsity"),
                                        (lambda: LTCConfig(3, {"kind": "auto_npc", "units": 8}), "'ncp', 'auto_ncp'"),
                                        (lambda: LTCConfig(3, {"units": 8}), "needs 'wiring.kind', one of 'fully_connected', 'random', 'ncp', 'auto_ncp'"),
                                        (lambda: LTCConfig(3, {"kind": "auto_ncp", "units": 8, "d_outputs": 2}),
                                         "unknown key 'wiring.d_outputs'; did you mean d_output?"),
                                        (lambda: CfCConfig(3, backbone_layers=-1), None)])
def test_misuse_is_told(make, says):
    if says is None:
        with pytest.raises(ConfigError, match="backbone_layers of at least 0"):
            CfC(make())
    else:
        with pytest.raises(ConfigError, match=says):
            make()


def test_masked_weights_stay_out_through_training(backend):
    """The outputs of a trained layer do not know the weights where no synapse is."""
    for layer in (LTC(LTCConfig(4, WIRING), key=em.random.key(0)), WiredCfC(WiredCfCConfig(4, WIRING), key=em.random.key(0))):
        x = put(numbers(0, 2, 5, 4))
        optimizer = AdamW(AdamWConfig(0.05, weight_decay=0.1))
        gradient = nn.value_and_grad(layer, lambda m, x: (m(x)[0] ** 2).mean())
        params, buffers = layer.parameters(), layer.buffers()
        state = optimizer.init(params)
        for _ in range(3):
            out, grads = gradient(params, buffers, None, x)
            params, state = optimizer.update(params, grads, state)[:2]
        assert {k: v.tolist() for k, v in out.buffers.items()} == {k: v.tolist() for k, v in layer.buffers().items()}
        masks = {k.replace("mask", "w" if isinstance(layer, LTC) else "weight"): b for k, b in buffers.items()}
        assert all(0.0 < get(m).mean() < 1.0 for m in masks.values())
        other = {**params, **{k: em.ops.where(m > 0.0, params[k], 7.0) for k, m in masks.items()}}
        with layer.using(params):
            y = layer(x)[0]
        with layer.using(other):
            close(layer(x)[0], y, 1e-6)


@pytest.mark.parametrize("layer", [LTCConfig(3), CfCConfig(3, backbone_units=4), WiredCfCConfig(3, FullyConnected(5, 3))], ids=["ltc", "cfc", "wired"])
def test_times_between_positions(backend, layer):
    """One for all sequences or for each; step by step; unlike regular ones."""
    mixer = {LTCConfig: LTC, CfCConfig: CfC, WiredCfCConfig: WiredCfC}[type(layer)](layer, key=em.random.key(2))
    x, times = put(numbers(0, 2, 6, 3)), np.random.default_rng(1).uniform(0.1, 3.0, (2, 6))
    y, _ = mixer(x, None, put(times))
    first, _ = mixer(x, None, put(times[0]))
    close(first[:1], get(y)[:1], 1e-5)
    assert np.abs(get(first)[1] - get(y)[1]).max() > 1e-3
    assert np.abs(get(mixer(x)[0]) - get(y)).max() > 1e-3
    close(mixer(x, None, put(np.ones((2, 6))))[0], get(mixer(x)[0]), 1e-6)
    state = mixer.initial_state(2)
    for t in range(6):
        got, state = mixer.step(x[:, t], state, put(times[:, t]))
        close(got, get(y)[:, t], 1e-4)
    with pytest.raises(ShapeError, match=r"elapsed of shape \(batch, length\) = \(2, 6\) or \(length,\), got \(2, 5\)"):
        mixer(x, None, put(times[:, :5]))


def test_a_model_with_a_wiring_survives_its_file(backend, tmp_path):
    """The config's wiring comes back from JSON, and the masks with the weights."""
    model = nn.Model.from_config({"blocks": [{"d_input": 3, "layer": "ltc", "layer_config": {"wiring": {"kind": "auto_ncp", "units": 9, "d_output": 3}}},
                                             {"d_input": 3, "layer": "wired_cfc", "layer_config": {"wiring": {"kind": "ncp", "inter": 4, "command": 3,
                                              "motor": 3, "sensory_fanout": 2, "inter_fanout": 2, "recurrent_command": 2, "motor_fanin": 2}}}]})
    x = put(numbers(0, 1, 4, 3))
    model.save(tmp_path / "m.safetensors")
    assert get(nn.Model.load(tmp_path / "m.safetensors")(x)[0]).tolist() == get(model(x)[0]).tolist()


@pytest.mark.parametrize("wiring", [{"kind": "auto_ncp", "units": 2 ** 31 - 1, "d_output": 4}, {"kind": "fully_connected", "units": 2 ** 31 - 1},
                                    {"kind": "fully_connected", "units": 50_000}])
def test_a_wiring_that_no_memory_holds_is_refused(wiring):
    with pytest.raises(ConfigError, match=r"wiring: expected fewer than 2\^31 synapses"):
        LTC(LTCConfig(8, wiring))
