"""The names of the array API standard, version 2025.12, and the namespaces that other people's code gets from a tensor.

`ember_ml` itself is such a namespace: its creation functions put new tensors where `em.using` points, and it offers every dtype.
`x.__array_namespace__()` is the same for the engine of x alone, so that code which knows only x makes its new tensors beside it: creation
stays on that engine, and `__array_namespace_info__` names the dtypes that it computes with. Source: data-apis.org/array-api/2025.12.
"""

from __future__ import annotations

import importlib
import math
from functools import lru_cache, wraps

from ember_ml import backend as engines
from ember_ml.ops import linalg
from ember_ml.ops.bits import (
    bitwise_and, bitwise_invert, bitwise_left_shift, bitwise_or, bitwise_right_shift, bitwise_xor, copysign, nextafter, signbit,
)
from ember_ml.ops.creation import (
    arange, asarray, empty, empty_like, eye, from_dlpack, full, full_like, linspace, ones, ones_like, zeros, zeros_like,
)
from ember_ml.ops.data_type import KINDS, astype, can_cast, finfo, iinfo, isdtype, result_type
from ember_ml.ops.elementwise import (
    abs, add, atan2, ceil, clip, conj, cos, divide, equal, exp, expm1, floor, floor_divide, greater, greater_equal, imag, isfinite, isinf,
    isnan, less, less_equal, log, log1p, log2, log10, logaddexp, logical_and, logical_not, logical_or, logical_xor, maximum, minimum, multiply,
    negative, not_equal, positive, pow, real, reciprocal, remainder, round, sign, sin, sqrt, square, subtract, tanh, trunc, where,
)
from ember_ml.ops.index import nonzero, take, take_along_axis
from ember_ml.ops.linalg import matmul, matrix_transpose, tensordot, vecdot
from ember_ml.ops.rearrange import (
    broadcast_arrays, broadcast_shapes, meshgrid, moveaxis, repeat, roll, tile, tril, triu, unstack,
)
from ember_ml.ops.recurrence.cumulative import cumulative_prod, cumulative_sum, diff
from ember_ml.ops.reduce import all, any, argmax, argmin, count_nonzero, max, mean, min, prod, std, sum, var
from ember_ml.ops.search import isin, searchsorted, unique_all, unique_counts, unique_inverse, unique_values
from ember_ml.ops.shape import broadcast_to, concat, expand_dims, flip, permute_dims, reshape, squeeze, stack
from ember_ml.ops.sort import argsort, sort
from ember_ml.ops.trigonometry import acos, acosh, asin, asinh, atan, atanh, cosh, hypot, sinh, tan
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common.dtypes import (
    bool_, complex64, complex128, float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64,
)

VERSION = "2025.12"
_VERSIONS = ("2021.12", "2022.12", "2023.12", "2024.12", VERSION)

e, inf, nan, pi, newaxis = math.e, math.inf, math.nan, math.pi, None
fft = importlib.import_module("ember_ml.ops.fft")        # the module: `ops.fft` is the function of that name in it

_DTYPES = {d.name: d for d in (bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64, complex64, complex128)}
bool = bool_  # noqa: A001 - the standard's name

_CREATION = (arange, asarray, empty, eye, from_dlpack, full, linspace, ones, zeros, fft.fftfreq, fft.rfftfreq)

#: every name that a namespace offers
NAMES = tuple("""
    abs acos acosh add all any arange argmax argmin argsort asarray asin asinh astype atan atan2 atanh bitwise_and bitwise_invert
    bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor broadcast_arrays broadcast_shapes broadcast_to can_cast ceil clip concat
    conj copysign cos cosh count_nonzero cumulative_prod cumulative_sum diff divide e empty empty_like equal exp expand_dims expm1 eye fft
    finfo flip floor floor_divide from_dlpack full full_like greater greater_equal hypot iinfo imag inf isdtype isfinite isin isinf isnan
    less less_equal linalg linspace log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor matmul matrix_transpose
    max maximum mean meshgrid min minimum moveaxis multiply nan negative newaxis nextafter nonzero not_equal ones ones_like permute_dims pi
    positive pow prod real reciprocal remainder repeat reshape result_type roll round searchsorted sign signbit sin sinh sort sqrt square
    squeeze stack std subtract sum take take_along_axis tan tanh tensordot tile tril triu trunc unique_all unique_counts unique_inverse
    unique_values unstack var vecdot where zeros zeros_like""".split())


class Info:
    """What a namespace can do: its devices, dtypes and defaults. engine: name of an engine, None for the current one."""

    def __init__(self, engine: str | None = None):
        self._engine = engine

    def _backend(self):
        return engines.current()[0] if self._engine is None else engines.get(self._engine)

    def capabilities(self) -> dict:
        """Masks may be indices, and results may have shapes that depend on values; every engine takes up to 32 axes."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 32}

    def default_device(self) -> str:
        """Where new tensors go, as "engine:device"."""
        if self._engine is None:
            backend, device = engines.current()
            return f"{backend.name}:{device}"
        return f"{self._engine}:{self._backend().default_device}"

    def devices(self) -> tuple[str, ...]:
        """The devices of the engine, as "engine:device"."""
        backend = self._backend()
        return tuple(f"{backend.name}:{device}" for device in backend.devices())

    def default_dtypes(self, *, device=None) -> dict:
        """The dtypes of Python numbers and of indices: the same everywhere."""
        return {"real floating": float32, "complex floating": complex64, "integral": int32, "indexing": int32}

    def dtypes(self, *, device=None, kind=None) -> dict:
        """Name -> dtype that the engine computes with; of a kind ("bool", "integral", "real floating", ...) or a tuple of kinds only."""
        kinds = KINDS if kind is None else (kind,) if isinstance(kind, str) else kind
        wanted = {k for name in kinds for k in KINDS[name]}
        return {name: d for name, d in _declared(self._backend()).items() if d.kind in wanted}


def _declared(backend) -> dict:
    """Name -> dtype of the standard's that the engine computes with."""
    return {name: d for name, d in _DTYPES.items() if d in backend.dtypes and d not in backend.undeclared}


def __array_namespace_info__() -> Info:  # noqa: N807 - the standard's name
    """What `ember_ml` can do on the engine that `em.using` has chosen."""
    return Info()


class Namespace:
    """The array API on one engine; see the module. Its attributes are the standard's names."""

    def __init__(self, engine: str):
        self.__name__, self.__array_api_version__ = f"ember_ml on {engine}", VERSION
        self._engine = engine
        for name in NAMES:
            setattr(self, name, self._bound(globals()[name]))
        self.fft = _Extension({name: self._bound(getattr(fft, name)) for name in fft.__all__})
        for name, dtype in _DTYPES.items():
            setattr(self, name, dtype)

    def __array_namespace_info__(self) -> Info:
        """What this engine can do."""
        return Info(self._engine)

    def _bound(self, function):
        if function not in _CREATION:
            return function

        @wraps(function)
        def create(*args, device=None, **kw):
            if device is None:
                device = self._engine
            elif device.partition(":")[0] not in engines.names():
                device = f"{self._engine}:{device}"
            return function(*args, device=device, **kw)
        return create

    def __repr__(self) -> str:
        return f"<array API {VERSION}: {self.__name__}>"

    def __reduce__(self):
        return namespace, (self._engine,)


class _Extension:
    """A part of a namespace, such as `fft`."""

    def __init__(self, functions: dict):
        self.__dict__.update(functions)


@lru_cache(maxsize=None)
def namespace(engine: str) -> Namespace:
    """The array API on an engine: the same object at every call, so that code can tell whether two tensors fit together."""
    return Namespace(engine)


def _array_namespace(x: EmberTensor, *, api_version: str | None = None) -> Namespace:
    """The array API on this tensor's engine. Raises ValueError for a version of the standard that is not known."""
    if api_version is not None and api_version not in _VERSIONS:
        raise ValueError(f"__array_namespace__: expected api_version among {', '.join(_VERSIONS)}; got {api_version!r}")
    return namespace(x.backend.name)


EmberTensor.__array_namespace__ = _array_namespace

__all__ = [*NAMES, *_DTYPES, "bool_", "__array_namespace_info__", "namespace"]
