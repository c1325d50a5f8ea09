"""Gradients, checkpointing and compilation of functions over trees of tensors."""

from ember_ml.autodiff import tree
from ember_ml.autodiff.checkpoint import checkpoint
from ember_ml.autodiff.compile import compile
from ember_ml.autodiff.gradient import grad, stop_gradient, value_and_grad, vjp

__all__ = ["checkpoint", "compile", "grad", "stop_gradient", "tree", "value_and_grad", "vjp"]
