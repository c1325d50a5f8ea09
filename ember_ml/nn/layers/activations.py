"""Activation functions by the names that configurations use."""

from __future__ import annotations

from typing import Literal

from ember_ml.ops.activation import ACTIVATIONS

ActivationName = Literal["identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "relu_squared", "elu", "selu", "mish",
                         "leaky_relu", "hard_swish", "softsign"]

__all__ = ["ACTIVATIONS", "ActivationName"]
