"""Activation functions by the names that configurations use."""

from __future__ import annotations

from typing import Literal

from ember_ml.ops import gelu, gelu_tanh, relu, sigmoid, silu, tanh

ActivationName = Literal["identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]

#: name -> function of one tensor; "gelu" is the exact one, "gelu_tanh" GPT-2's approximation
ACTIVATIONS = {"identity": lambda x: x, "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu,
               "sigmoid": sigmoid, "tanh": tanh}
