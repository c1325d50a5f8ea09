"""The rows of every sequence mixer, for the tests that hold all of them to one template.

A mixer that is registered without a row in CONFIGS fails `test_every_sequence_mixer_has_a_row`. A row is a list of the
config's fields, with d_input among them; every mixer is run on sequences of up to LENGTH positions.
"""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.registry import layers
from tests.conftest import ENGINES, require_engine
from tests.nn._help import cast, get, numbers, put

LENGTH = 13
CONFIGS = {
    "hyena": [dict(d_input=6, l_max=LENGTH, filter={"width": 8}),
              dict(d_input=4, l_max=LENGTH + 3, order=3, short_taps=4, filter={"width": 8, "learn_positions": True}),
              dict(d_input=4, l_max=LENGTH, order=3, activation="gelu", order_scale=True, outer_mixing=True,
                   filter={"width": 8, "depth": 0, "learn_decay": True, "normalized": True}),
              dict(d_input=4, l_max=LENGTH, filter={"network": "linear", "window": False}),
              dict(d_input=4, d_inner=6, groups=2, l_max=LENGTH, head_dim=2, filter={"width": 8}),
              dict(d_input=4, d_inner=8, groups=3, l_max=LENGTH, filter_kind="rational", filter={"d_state": 3, "denominators": 4})],
    "fftconv": [dict(d_input=4, l_max=LENGTH)],              # the architecture document's name for long_conv
    "long_conv": [dict(d_input=6, l_max=LENGTH), dict(d_input=4, l_max=LENGTH + 2, copies=2, smoothing=3, activation="silu")],
    "gated_linear_attention": [dict(d_input=8, heads=2), dict(d_input=4, heads=1, expand_k=1.0, expand_v=2.0, gate="gelu",
                                                            decay_rank=3, decay_scale=2.0, decay_floor=-0.3)],
    "gru": [dict(d_input=4), dict(d_input=3, bias=False)],
    "lstm": [dict(d_input=4), dict(d_input=3, bias=False)],
    "parallel": [dict(d_input=4, mixers=[{"layer": "gru"}, {"layer": "self_attention"}, {"layer": "mlp"}])],
    "rnn": [dict(d_input=4), dict(d_input=3, bias=False, activation="relu")],
    "feature_extraction": [dict(d_input=3, causal=True), dict(d_input=4, causal=True, channels=[5], taps=2, activation="silu", recurrent="gru")],
    "gated_conv": [dict(d_input=4, filter={"kind": "modal", "modes": 3}),
                   dict(d_input=4, short_bias=False, bias=False, filter={"kind": "modal", "modes": 2, "complex": True, "filters": 2}),
                   dict(d_input=4, out_bias=False, filter={"kind": "taps", "taps": 5, "order": "corr", "filters": 2, "skip": False}),
                   dict(d_input=3, filter={"kind": "taps", "taps": 40}), dict(d_input=3, short_taps=1, filter={"kind": "taps", "taps": 1})],
    "mamba": [dict(d_input=6, d_state=3), dict(d_input=4, d_state=5, expand=3, taps=2, dt_rank=2, bias=True, conv_bias=False),
              dict(d_input=4, d_state=3, inner_norm=True)],
    "mlstm": [dict(d_input=4, heads=2, multiple_of=8), dict(d_input=4, heads=1, block=2, taps=2, expand=1.5, multiple_of=2, bias=True)],
    "mlstm_large": [dict(d_input=8, heads=2), dict(d_input=4, heads=1, expand_k=1.0, expand_v=2.0, gate_cap=2.0, bias=True)],
    "slstm": [dict(d_input=4, heads=2), dict(d_input=6, heads=3, taps=None), dict(d_input=4, heads=1, taps=2, cell="lstm")],
    "ltc": [dict(d_input=3, unfolds=2), dict(d_input=2, unfolds=3, mixed_memory=True, softplus=False, wiring={"kind": "auto_ncp", "units": 9,
                                                                                                   "d_output": 2})],
    "cfc": [dict(d_input=3, backbone_units=5), dict(d_input=3, d_hidden=4, d_output=3, mode="no_gate", backbone_layers=2, backbone_units=4,
                                                   activation="silu", mixed_memory=True),
            dict(d_input=3, mode="pure", backbone_layers=0)],
    "wired_cfc": [dict(d_input=2, wiring={"kind": "auto_ncp", "units": 9, "d_output": 2}),
                  dict(d_input=3, mode="pure", wired_gate=False, d_output=3, wiring={"kind": "random", "units": 4, "sparsity": 0.5})],
    "mamba2": [dict(d_input=4, d_state=3, head_dim=4), dict(d_input=4, d_inner=12, d_state=2, head_dim=3, groups=2, taps=2, bias=True,
                                                            conv_bias=False, dt_limit=(0.01, 0.05), norm="before", chunk=4),
               dict(d_input=4, d_state=2, head_dim=4, norm=None)],
    "rwkv4": [dict(d_input=4), dict(d_input=4, d_inner=6)],
    "rwkv5": [dict(d_input=4, head_dim=2), dict(d_input=4, d_inner=6, head_dim=3)],
    "rwkv6": [dict(d_input=4, head_dim=2, mix_rank=3, decay_rank=2), dict(d_input=4, d_inner=6, head_dim=3, mix_rank=2, decay_rank=3)],
    "rwkv7": [dict(d_input=4, head_dim=2, decay_rank=2, rate_rank=2, gate_rank=3), dict(d_input=6, head_dim=3)],
    "rwkv_channel_mixing": [dict(d_input=4), dict(d_input=4, d_inner=5, gated=False)],
    "gated_short_conv": [dict(d_input=4), dict(d_input=3, taps=1, bias=True)],
    "rg_lru": [dict(d_input=4), dict(d_input=4, d_inner=6, heads=2, taps=2)],
    "gated_delta_net": [dict(d_input=4, heads=2, key_dim=3, value_dim=2), dict(d_input=4, heads=4, key_heads=2, key_dim=2, value_dim=3, taps=2)],
    "linear_attention": [dict(d_input=4, heads=2), dict(d_input=4, heads=1, feature_map="hedgehog", expand_v=2.0, norm_q=True, norm_k=True),
                         dict(d_input=4, heads=1, feature_map="taylor", expand_k=0.5), dict(d_input=4, feature_map="elementwise_product", tied=True,
                                                                                       eps=3.0),
                         dict(d_input=6, heads=2, feature_map="dpfp"), dict(d_input=6, heads=2, feature_map="t2r", eps=0.1)],
    "retention": [dict(d_input=4, heads=2), dict(d_input=6, heads=1, expand_v=1, norm_eps=0.1)],
    "min_gru": [dict(d_input=4), dict(d_input=3, bias=False)],
    "short_conv": [dict(d_input=4), dict(d_input=3, taps=1, bias=False, activation="silu")],
    "self_attention": [dict(d_input=6, heads=2), dict(d_input=4, bias=False),
                       dict(d_input=4, heads=4, kv_heads=2, head_dim=6, rope={"base": 50.0, "dims": 4}, qk_norm=True, out_bias=False),
                       dict(d_input=4, heads=2, kv_heads=1, rope={"interleaved": True, "scale": 3.0, "base": 7.0}, window=4, taps=3)],
    "transformer": [dict(d_input=4, heads=2, d_inner=5)],
}
CASES = [pytest.param(name, row, id=f"{name}-{i}") for name, rows in CONFIGS.items() for i, row in enumerate(rows)]
PRECISIONS = [pytest.param(e, "float32", 1e-4, id=f"{e}-float32") for e in ENGINES] + [
    pytest.param(e, "float64", 1e-9, id=f"{e}-float64") for e in ("numpy", "torch")]
every_mixer = pytest.mark.parametrize("name, fields", CASES)
every_precision = pytest.mark.parametrize("engine, dtype, tolerance", PRECISIONS)


def mixers() -> list[str]:
    return [name for name in layers.names() if getattr(layers.get(name), "mixes_sequence", False)]


def build(name, fields, engine, dtype="float32"):
    """The mixer with parameters large enough that no term hides, its tensors in `dtype`."""
    require_engine(engine)
    with em.using(engine):
        mixer = layers.instantiate(name, key=em.random.key(1), **fields)
    for where in mixer.places().values():
        for owner, attr in where:
            setattr(owner, attr, cast(getattr(owner, attr), dtype))
    return mixer


def inputs(fields, engine, dtype, batch=2, length=LENGTH, seed=0):
    return put(numbers(seed, batch, length, fields["d_input"]), dtype, engine)


def start(mixer, batch, dtype):
    with em.using(next(iter(mixer.tensors().values())).device):
        return mixer.initial_state(batch, dtype)


def scan(mixer, x, state):
    """The outputs of `step` at every position of x, and the state after."""
    out = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        assert y.shape == (x.shape[0], x.shape[2]) and y.dtype is x.dtype
        out.append(get(y))
    return np.stack(out, 1), state
