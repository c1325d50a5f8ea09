"""Layers with filters as long as the sequence, beyond the template: how long they can be, and the future."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.registry import layers
from tests.nn._help import numbers
from tests.nn._mixers import CONFIGS, build, inputs


@pytest.mark.parametrize("fields", CONFIGS["hyena"])
def test_hyena_says_how_long_it_can_be(fields, backend):
    mixer = build("hyena", fields, backend)
    l_max = mixer.config.l_max
    with pytest.raises(ShapeError, match=f"at most l_max = {l_max}, got {l_max + 1}; build the layer"):
        mixer(inputs(fields, backend, "float32", length=l_max + 1))


def test_a_bidirectional_long_convolution_reads_the_future_and_has_no_step(backend):
    layer = layers.instantiate("long_conv", d_input=2, l_max=6, squash=0.0, activation="identity", bidirectional=True,
                               key=em.random.key(0))
    x = numbers(3, 1, 5, 2).astype(np.float32)
    k, future, D = (t.numpy().astype(np.float64) for t in (layer.kernel, layer.future, layer.D))
    z = np.array([[sum(k[d, t - j] * x[0, j, d] for j in range(t + 1)) + D[d] * x[0, t, d]
                   + sum(future[d, j - t - 1] * x[0, j, d] for j in range(t + 1, 5)) for d in range(2)] for t in range(5)])
    a, b = np.split(z @ layer.out_proj.weight.numpy().T + layer.out_proj.bias.numpy(), 2, axis=-1)
    np.testing.assert_allclose(layer(em.tensor(x))[0].numpy()[0], a / (1 + np.exp(-b)), rtol=1e-4, atol=1e-5)
    with pytest.raises(em.UnsupportedOp, match="reads the future"):
        layer.initial_state(1)
