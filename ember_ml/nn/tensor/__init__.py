"""The tensor, where the architecture document looks for it; its home is the ground floor, `ember_ml.tensor`."""

from ember_ml.tensor import Backend, DType, EmberTensor, Runtime, dtype

__all__ = ["Backend", "DType", "EmberTensor", "Runtime", "dtype"]
