"""Gradients, checkpointing and compilation of functions over trees of tensors."""

from ember_ml.autodiff import tree
from ember_ml.autodiff.checkpoint import checkpoint
from ember_ml.autodiff.compile import compile
from ember_ml.autodiff.gradient import grad, stop_gradient, value_and_grad, vjp
from ember_ml.autodiff.transform import is_tracing, is_transforming

__all__ = ["checkpoint", "compile", "grad", "is_tracing", "is_transforming", "stop_gradient", "tree", "value_and_grad", "vjp"]
