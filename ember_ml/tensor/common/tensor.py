"""EmberTensor: a native array, the engine that it belongs to, and its place on the tape."""

from __future__ import annotations

from ember_ml.errors import Elsewhere
from ember_ml.tensor.common.dtypes import DType


#: what people who come from elsewhere look for, and where it is
_ELSEWHERE = {
    **dict.fromkeys(("backward", "grad", "requires_grad", "requires_grad_"), "em.value_and_grad(fn)(x) gives fn's value and its gradient"),
    "detach": "em.stop_gradient(x)", "clone": "a tensor is a value: whoever changes x changes no other tensor", "copy": "a tensor is a value: whoever changes x changes no other tensor",
    "cuda": "x.to('torch:cuda:0')", "cpu": "x.to('torch:cpu'), or x.numpy()", "view": "x.reshape(...)", "unsqueeze": "em.expand_dims(x, axis=...)",
    "permute": "em.permute_dims(x, axes)", "transpose": "em.permute_dims(x, axes)", "dim": "x.ndim", "numel": "x.size", "type": "x.astype(dtype)",
    "half": "x.astype('float16')", "float": "x.astype('float32')", "double": "x.astype('float64')", "int": "x.astype('int32')", "long": "x.astype('int64')",
    "bool": "x.astype('bool')",
}


class EmberTensor:
    """An n-dimensional array on one of the engines, with value semantics.

    Three slots and nothing cached: `data` (the engine's own array), `backend` (the engine), `node` (the tape's record
    of how it was made, or None). Operators and methods are attached by the declarations in `ember_ml.ops`, so this
    class knows no op. No tensor is a view of another: `x[i] = v` gives `x` a new array and a new node, and
    whoever used the old value keeps it, gradients included.

    Tensors are made by `em.tensor(...)`, `em.zeros(...)`, ... or by wrapping: `em.from_native(array)`.
    """

    __slots__ = ("data", "backend", "node")
    # NumPy arrays hand binary operators over to us, where they get a clear error instead of an object array.
    __array_ufunc__ = None
    __hash__ = object.__hash__

    def __init__(self, data, backend, node=None):
        self.data = data
        self.backend = backend
        self.node = node

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return tuple(self.data.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for length in self.data.shape:
            n *= length
        return n

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return self.size * self.dtype.itemsize

    @property
    def dtype(self) -> DType:
        """Element type, one of `ember_ml`'s dtypes."""
        return self.backend.dtype_of(self.data)

    @property
    def device(self) -> str:
        """Engine and device, such as "numpy:cpu", "mlx:gpu" or "torch:cuda:0"."""
        return f"{self.backend.name}:{self.backend.device_of(self.data)}"

    def __len__(self) -> int:
        if not self.data.shape:
            raise TypeError("len: expected a tensor with at least one axis, got a scalar tensor")
        return self.data.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        if self.size > 1000:
            return f"EmberTensor(shape={self.shape}, dtype={self.dtype}, device={self.device})"
        body = repr(self.tolist()).replace("], [", "],\n [")
        return f"EmberTensor({body}, shape={self.shape}, dtype={self.dtype}, device={self.device})"


for _name, _hint in _ELSEWHERE.items():
    setattr(EmberTensor, _name, Elsewhere(_name, _hint))
