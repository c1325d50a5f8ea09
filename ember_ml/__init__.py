"""Ember: long-context sequence models, trained on a Mac and run on NVIDIA GPUs or any CPU, with parity to check.

    import ember_ml as em
    x = em.tensor([1.0, 2.0], device="torch")
    loss, g = em.value_and_grad(lambda x: (x * x).sum())(x)
"""

import importlib
import sys

from ember_ml import autodiff, ops
from ember_ml.autodiff import checkpoint, compile, grad, stop_gradient, tree, value_and_grad, vjp
from ember_ml.backend import available, using
from ember_ml.errors import (
    AxisError, BackendMismatch, BackendMissing, ConfigError, DataError, EmberError, MissingExtra, RegistryError, ShapeError,
    UnsupportedDevice, UnsupportedDtype, UnsupportedOp, WeightsError,
)
from ember_ml.ops import debug_checks, from_native, random, standard, tensor
from ember_ml.ops.standard import *  # noqa: F403 - the names of the array API, listed there
from ember_ml.tensor import DType, EmberTensor
from ember_ml.tensor.common.dtypes import bfloat16, float16

__array_api_version__ = standard.VERSION
__version__ = "0.1.0"


def __getattr__(name: str):
    if name in ("data", "interop", "nn", "parity"):                # loaded when they are asked for, so that `import ember_ml` stays quick
        return importlib.import_module(f"{__name__}.{name}")
    hint = f"; it is em.ops.{name}" if hasattr(ops, name) else "; a tensor is an em.EmberTensor, em.tensor(...) makes one" if name == "Tensor" else ""
    raise AttributeError(f"module 'ember_ml' has no attribute {name!r}{hint}", name=name, obj=sys.modules[__name__])
