"""Feature maps of linear attention: queries and keys become features whose product stands for the exponential of theirs."""

from __future__ import annotations

import math

from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.module import Module
from ember_ml.ops import concat, exp, expand_dims, minimum, random, relu, reshape, softmax, square, take, tensor, where
from ember_ml.ops.shape import cut
from ember_ml.tensor import EmberTensor

#: neighbours that each channel of dpfp meets
NEIGHBOURS = 4


def _elu(x):
    return where(x > 0.0, x + 1.0, exp(minimum(x, 0.0)))


def _rolled(x):
    """Each channel times its neighbours 1, ..., NEIGHBOURS places before it, on a circle."""
    width = x.shape[-1]
    places = (width - j % width for j in range(1, NEIGHBOURS + 1))
    return concat([x * concat([cut(x, at, width, axis=-1), cut(x, 0, at, axis=-1)], axis=-1) for at in places], axis=-1)


def _taylor(x):
    width = x.shape[-1]
    pairs = tensor([i * width + j for i in range(width) for j in range(i + 1, width)], dtype="int32", like=x)
    products = reshape(expand_dims(x, -1) * expand_dims(x, -2), (*x.shape[:-1], width * width))
    parts = [x[..., :1].ones_like(), x * width ** -0.25, square(x) * (0.5 / width) ** 0.5]
    return concat(parts + ([take(products, pairs, axis=-1) * (1.0 / math.sqrt(width))] if width > 1 else []), axis=-1)


#: name -> (learned linear maps of the channels, features of what they give; of the channels themselves if there are none)
MAPS = {
    "identity": (0, lambda x: x), "elu": (0, _elu), "taylor": (0, _taylor),
    "dpfp": (0, lambda x: _rolled(concat([relu(x), relu(-x)], axis=-1))),
    "dpfp_mad": (0, lambda x: _rolled(concat([relu(x), -relu(x)], axis=-1))),
    "t2r": (1, relu), "hedgehog": (1, lambda z: softmax(concat([2.0 * z, -2.0 * z], axis=-1), axis=-1)),
    "elementwise_product": (2, lambda z, w: z * w),
}


class FeatureMap(Module):
    """Features phi(x) of the channels of a head, the same map for all heads.

        identity             x
        elu                  elu(x) + 1                                     Katharopoulos et al. 2020, Transformers are RNNs
        dpfp                 r_i r_{i-j} for j = 1 ... 4, r = [relu(x), relu(-x)]       Schlag et al. 2021, Fast Weight Programmers, eq. 37
        dpfp_mad             the same with r = [relu(x), -relu(x)], as MAD-Lab computes it: blind to negative channels
        t2r                  relu(W x + b)                                  Kasai et al. 2021, Finetuning Pretrained Transformers into RNNs
        hedgehog             softmax([2 z, -2 z]), z = W x + b              Zhang et al. 2024, The Hedgehog and the Porcupine
        taylor               [1, x, x_i^2 / sqrt 2, x_i x_j (i < j)], scaled by d^-1/4 an x: its product is 1 + s + s^2 / 2, s = q k / sqrt d
                             Arora et al. 2024, Simple Linear Attention Language Models (Based)
        elementwise_product  (W x + b) (V x + c)

    Args:
        name: one of these. width: channels of a head. key: random key of the initial weights.

    Parameters: maps.0, maps.1 (width, width) as Dense, where the formula has W and V.
    """

    def __init__(self, name: str, width: int, key: EmberTensor | None = None):
        count, self._features = MAPS[name]
        keys = random.split(key if key is not None else random.next_key(), 2)
        self.maps = [Dense(DenseConfig(width), key=keys[i]) for i in range(count)]

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., width) to (..., features)."""
        return self._features(*[m(x) for m in self.maps]) if self.maps else self._features(x)
