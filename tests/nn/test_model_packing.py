"""Documents packed into one row: a model keeps them apart, or says which of its layers cannot."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import DataError
from tests.nn._help import close, get

PACKED = {"vocab_size": 7, "head": "tied", "norm": "rms_norm", "defaults": {"d_input": 8, "norm": "rms_norm"},
          "blocks": [{"layer": "self_attention", "self_attention_config": {"heads": 2, "rope": {}, "window": 4}}, "mamba", "lstm", "gated_mlp"]}


def test_a_model_keeps_packed_documents_apart(backend):
    model = nn.Model.from_config(PACKED, key=em.random.key(0))
    tokens = em.random.randint(em.random.key(1), (2, 9), 0, 7)
    segments = em.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2, 3, 3]], dtype="int32")
    y, hidden = model(tokens, segments=segments)[0], model.hidden(tokens, segments=segments)[0]
    for row, first, length in ((0, 0, 4), (0, 4, 3), (1, 0, 6), (1, 6, 1), (1, 7, 2)):
        alone = tokens[row:row + 1, first:first + length]
        close(y[row:row + 1, first:first + length], model(alone)[0], 1e-4)
        close(hidden[row:row + 1, first:first + length], model.hidden(alone)[0], 1e-4)
    assert np.abs(get(y) - get(model(tokens)[0]))[:, -1].max() > 1e-3


@pytest.mark.parametrize("pool", ["mean", "max", "last", "first"])
def test_a_pooled_head_leaves_padding_out(pool, backend):
    blocks = [{"layer": "hyena", "hyena_config": {"l_max": 9}}, {"layer": "self_attention", "self_attention_config": {"heads": 2, "causal": False}}]
    model = nn.Model.from_config({**PACKED, "head": "classifier", "outputs": 3, "pool": pool, "blocks": blocks}, key=em.random.key(0))
    tokens = em.random.randint(em.random.key(1), (3, 9), 0, 7)
    lengths = (9, 4, 1)
    y = model(tokens, segments=em.tensor([[1] * n + [0] * (9 - n) for n in lengths], dtype="int32"))[0]
    for row, n in enumerate(lengths):
        close(y[row:row + 1], model(tokens[row:row + 1, :n])[0], 1e-4)


def test_segments_are_an_input_of_what_is_compiled():
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    with em.using("mlx"):
        model = nn.Model.from_config({**PACKED, "blocks": PACKED["blocks"][:1]}, key=em.random.key(0))
        tokens = em.random.randint(em.random.key(1), (1, 6), 0, 7)

        def run(tensors, tokens, segments):
            with model.using(tensors):
                return model(tokens, segments=segments)[0]
        compiled = em.compile(run)
        for row in ([1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 3, 0]):
            segments = em.tensor([row], dtype="int32")
            close(compiled(model.tensors(), tokens, segments), model(tokens, segments=segments)[0], 1e-5)


@pytest.mark.parametrize("change, message", [
    ({"blocks": ["mlp", {"layer": "hyena", "hyena_config": {"l_max": 9}}]}, r"blocks.1.layer \(Hyena\) cannot keep the documents"),
    ({"blocks": [{"layer": "parallel", "parallel_config": {"mixers": [{"layer": "gru"}, {"layer": "long_conv", "layer_config": {"l_max": 9}}]}}]},
     r"blocks.0.layer.mixers.1 \(LongConv\) cannot .* one transform, which has no borders inside; give it a row a document"),
    ({"blocks": [{"layer": "gru", "pool": "pool", "pool_config": {"stride": 3}}]}, r"blocks.0.pool \(Pool\) cannot .* its strides cross the borders"),
    ({"head": "classifier", "outputs": 2, "blocks": [{"layer": "long_conv", "long_conv_config": {"l_max": 9, "bidirectional": True}}]},
     r"\(LongConv\) cannot"),
    ({"head": "classifier", "outputs": 2, "blocks": [{"layer": "moe", "moe_config": {"num_experts": 2, "expert_type": "gru", "level": "sequence"}}]},
     r"\(SparseMoE\) cannot .* mean of the row")])
def test_a_layer_that_cannot_pack_is_named(change, message):
    model = nn.Model.from_config({**PACKED, **change})
    tokens = em.ops.zeros((1, 9), "int32")
    with pytest.raises(em.UnsupportedOp, match=message):
        model(tokens, segments=tokens)


def test_segments_fit_the_tokens_and_no_state():
    model = nn.Model.from_config(PACKED)
    tokens = em.ops.zeros((1, 9), "int32")
    with pytest.raises(em.ShapeError, match=r"segments of shape \(batch, length\) = \(1, 9\), and no state; got \(1, 8\)$"):
        model(tokens, segments=tokens[:, 1:])
    with em.debug_checks():
        for row in ([1, 1, 2, 2, 1, 1, 3, 0, 0], [1, 1, 0, 1, 2, 2, 3, 0, 0], [0, 0, 1, 1, -1, 0, 0, 0, 0]):
            with pytest.raises(DataError, match=r"each in one piece, and 0 for padding; got \[.*\] in row 1"):
                model(em.ops.zeros((2, 9), "int32"), segments=em.tensor([[1] * 9, row], dtype="int32"))
    with pytest.raises(em.ShapeError, match="a state: packed rows begin anew"):
        model(tokens, model.initial_state(1), segments=tokens)
