"""Activation functions by the names that configurations use."""

from __future__ import annotations

from typing import Literal

from ember_ml.ops import elu, gelu, gelu_tanh, hard_swish, leaky_relu, mish, relu, relu_squared, selu, sigmoid, silu, softsign, tanh

ActivationName = Literal["identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "relu_squared", "elu", "selu", "mish",
                         "leaky_relu", "hard_swish", "softsign"]

#: name -> function of one tensor; "gelu" is the exact one, "gelu_tanh" GPT-2's approximation
ACTIVATIONS = {"identity": lambda x: x, "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu,
               "sigmoid": sigmoid, "tanh": tanh, "relu_squared": relu_squared, "elu": elu, "selu": selu, "mish": mish,
               "leaky_relu": leaky_relu, "hard_swish": hard_swish, "softsign": softsign}
