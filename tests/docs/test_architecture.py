"""The names that the architecture document calls things by, called as it calls them."""

import importlib

import numpy as np
import pytest

import ember_ml as em
from ember_ml.nn import blocks

D = 8
NAMES = {
    "ember_ml.registry": "Registry layers blocks models",
    "ember_ml.nn": "Block BlockConfig Model ModelConfig MixtureOfExperts SparseMoE",
    "ember_ml.nn.layers": "FeatureExtractionModule FFTConv FFTConvConfig MLP GatedMLP Dense GatedLinear RMSNorm LayerNorm SelfAttention "
                          "LinearAttention LSTM GRU LTC Hyena Mamba",
    "ember_ml.nn.layers.channel_mixing": "MixtureOfExperts SparseMoE MoEConfig",
    "ember_ml.nn.layers.sequence_mixing.fftconv": "FFTConv fftconv",
    "ember_ml.nn.moe.routing": "TopKRouter SoftmaxRouter SigmoidRouter",
    "ember_ml.nn.moe.combination": "WeightedSumCombiner ConcatCombiner",
    "ember_ml.nn.blocks": "TransformerBlock LSTMBlock MambaBlock HyenaBlock FFTConvBlock MoEBlock HybridBlock",
    "ember_ml.nn.configs": "BlockConfig ModelConfig FFTConvConfig MoEConfig",
    "ember_ml.nn.tensor": "EmberTensor",
    "ember_ml.nn.pipeline": "Pipeline",
}
BLOCKS = {"TransformerBlock": dict(heads=2), "LSTMBlock": {}, "MambaBlock": {}, "HyenaBlock": dict(l_max=4), "FFTConvBlock": dict(l_max=4, dropout=0.0),
          "MoEBlock": dict(num_experts=2, heads=2), "HybridBlock": dict(mixers=["gru", "mamba"])}


@pytest.mark.parametrize("module, name", [(module, name) for module, names in NAMES.items() for name in names.split()])
def test_a_name_is_where_it_is_looked_for(module, name):
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_made_from_its_fields(name):
    with em.using("numpy"):
        made = getattr(blocks, name)(D, **BLOCKS[name])
        x = em.random.normal(em.random.key(0), (2, 3, D))
        y, _ = made(x)
        _, state = made.step(x[:, 0], made.initial_state(2))
        z, _ = made.step(x[:, 1], state)
    np.testing.assert_allclose(z.numpy(), y.numpy()[:, 1], atol=1e-5)
