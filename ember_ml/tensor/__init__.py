"""The ground floor: EmberTensor, dtypes, the Backend protocol, exchange with other libraries."""

from ember_ml.tensor.common.dtypes import DType, dtype, promote
from ember_ml.tensor.common.tensor import EmberTensor
from ember_ml.tensor.interfaces.backend import Backend, Runtime
from ember_ml.tensor.protocols import exchange

__all__ = ["Backend", "DType", "EmberTensor", "Runtime", "dtype", "exchange", "promote"]
