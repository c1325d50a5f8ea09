"""Taking values out of tensors and into other libraries: Python numbers, NumPy, DLPack."""

from __future__ import annotations

from ember_ml.errors import memory_told
from ember_ml.tensor.common.tensor import EmberTensor


def numpy(x: EmberTensor):
    """The values as a NumPy array of the same shape and dtype (bfloat16 through ml_dtypes), a copy."""
    with memory_told(x.backend.name, lambda: f"reading {x.dtype}{list(x.shape)}"):          # MLX computes what is read when it is read
        return x.backend.to_numpy(x.data)


def item(x: EmberTensor):
    """The one element as a Python scalar. Raises ValueError if there is more than one."""
    if x.size != 1:
        raise ValueError(f"item: expected a tensor with one element, got shape {x.shape}; use .tolist() or .numpy()")
    return numpy(x).reshape(()).item()


def tolist(x: EmberTensor):
    """The values as nested lists of Python scalars."""
    return numpy(x).tolist()


def _array(x: EmberTensor, dtype=None, copy=None):
    if copy is False:
        raise ValueError("numpy: an EmberTensor has value semantics, so it is always copied; call x.numpy()")
    out = numpy(x)
    return out if dtype is None else out.astype(dtype)


def _dlpack(x: EmberTensor, *, stream=None, max_version=None, dl_device=None, copy=None):
    """A DLPack capsule of the tensor's own memory, where that is asked for and possible: who writes to it changes the tensor."""
    return x.backend.to_dlpack(x.data, **{k: v for k, v in (
        ("stream", stream), ("max_version", max_version), ("dl_device", dl_device), ("copy", copy)) if v is not None})


def _index(x: EmberTensor) -> int:
    if not (x.dtype.is_integer and x.ndim == 0):
        raise TypeError(f"index: expected an integer scalar tensor, got dtype {x.dtype} and shape {x.shape}")
    return item(x)


EmberTensor.numpy = numpy
EmberTensor.item = item
EmberTensor.tolist = tolist
EmberTensor.__array__ = _array
EmberTensor.__index__ = _index
EmberTensor.__int__ = lambda x: int(item(x))
EmberTensor.__float__ = lambda x: float(item(x))
EmberTensor.__complex__ = lambda x: complex(item(x))
EmberTensor.__bool__ = lambda x: bool(item(x))
EmberTensor.__dlpack__ = _dlpack
EmberTensor.__dlpack_device__ = lambda x: x.backend.dlpack_device(x.data)
