"""Every name of the standard is there, on every engine, and takes the keywords that the standard gives it."""

import inspect
import math

import pytest

import ember_ml as em

# Functions, and after the colon the parameters that callers may give by name.
FUNCTIONS = """
    abs: / acos: / acosh: / add: / all: axis keepdims / any: axis keepdims / arange: stop step dtype device / argmax: axis keepdims /
    argmin: axis keepdims / argsort: axis descending stable / asarray: dtype device copy / asin: / asinh: / astype: copy device / atan: /
    atan2: / atanh: / bitwise_and: / bitwise_invert: / bitwise_left_shift: / bitwise_or: / bitwise_right_shift: / bitwise_xor: /
    broadcast_arrays: / broadcast_shapes: / broadcast_to: shape / can_cast: / ceil: / clip: min max / concat: axis / conj: / copysign: /
    cos: / cosh: / count_nonzero: axis keepdims / cumulative_prod: axis dtype include_initial / cumulative_sum: axis dtype include_initial /
    diff: axis n prepend append / divide: / empty: shape dtype device / empty_like: dtype device / equal: / exp: / expand_dims: axis /
    expm1: / eye: k dtype device / finfo: / flip: axis / floor: / floor_divide: / from_dlpack: device copy / full: shape fill_value dtype device /
    full_like: fill_value dtype device / greater: / greater_equal: / hypot: / iinfo: / imag: / isdtype: dtype kind / isfinite: / isin: invert /
    isinf: / isnan: / less: / less_equal: / linspace: num dtype device endpoint / log: / log10: / log1p: / log2: / logaddexp: /
    logical_and: / logical_not: / logical_or: / logical_xor: / matmul: / matrix_transpose: / max: axis keepdims / maximum: /
    mean: axis keepdims / meshgrid: indexing / min: axis keepdims / minimum: / moveaxis: / multiply: / negative: / nextafter: / nonzero: /
    not_equal: / ones: shape dtype device / ones_like: dtype device / permute_dims: axes / positive: / pow: / prod: axis dtype keepdims /
    real: / reciprocal: / remainder: / repeat: axis / reshape: shape copy / result_type: / roll: shift axis / round: / searchsorted: side sorter /
    sign: / signbit: / sin: / sinh: / sort: axis descending stable / sqrt: / square: / squeeze: axis / stack: axis /
    std: axis correction keepdims / subtract: / sum: axis dtype keepdims / take: axis / take_along_axis: axis / tan: / tanh: /
    tensordot: axes / tile: / tril: k / triu: k / trunc: / unique_all: / unique_counts: / unique_inverse: / unique_values: / unstack: axis /
    var: axis correction keepdims / vecdot: axis / where: / zeros: shape dtype device / zeros_like: dtype device"""
LINALG = """
    cholesky: upper / cross: axis / det: / diagonal: offset / eig: / eigh: / eigvals: / eigvalsh: / inv: / matmul: / matrix_norm: keepdims ord /
    matrix_power: / matrix_rank: rtol / matrix_transpose: / outer: / pinv: rtol / qr: mode / slogdet: / solve: / svd: full_matrices /
    svdvals: / tensordot: axes / trace: offset dtype / vecdot: axis / vector_norm: axis keepdims ord"""
FFT = """
    fft: n axis norm / fftfreq: d dtype device / fftn: s axes norm / fftshift: axes / hfft: n axis norm / ifft: n axis norm /
    ifftn: s axes norm / ifftshift: axes / ihfft: n axis norm / irfft: n axis norm / irfftn: s axes norm / rfft: n axis norm /
    rfftfreq: d dtype device / rfftn: s axes norm"""
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128".split()
METHODS = """__abs__ __add__ __and__ __array_namespace__ __bool__ __complex__ __dlpack__ __dlpack_device__ __eq__ __float__ __floordiv__ __ge__
    __getitem__ __gt__ __index__ __int__ __invert__ __le__ __lshift__ __lt__ __matmul__ __mod__ __mul__ __ne__ __neg__ __or__ __pos__ __pow__
    __rshift__ __setitem__ __sub__ __truediv__ __xor__ to_device dtype device mT ndim shape size T __radd__ __rand__ __rfloordiv__ __rlshift__
    __rmatmul__ __rmod__ __rmul__ __ror__ __rpow__ __rrshift__ __rsub__ __rtruediv__ __rxor__""".split()


def names(text: str) -> dict[str, list[str]]:
    return {name.strip(): keywords.split() for name, _, keywords in (entry.partition(":") for entry in text.split("/"))}


@pytest.fixture(params=["ember_ml", "namespace"])
def xp(request, backend):
    return em if request.param == "ember_ml" else em.namespace(backend)


@pytest.mark.parametrize("part, text", [("", FUNCTIONS), ("linalg", LINALG), ("fft", FFT)])
def test_functions_and_their_keywords(xp, part, text):
    where = getattr(xp, part) if part else xp
    for name, keywords in names(text).items():
        parameters = inspect.signature(getattr(where, name)).parameters
        assert set(keywords) <= parameters.keys(), name
    assert len(names(text)) == {"": 135, "linalg": 25, "fft": 14}[part]


def test_constants_dtypes_and_version(xp):
    assert xp.__array_api_version__ == "2025.12" and (xp.e, xp.pi, xp.inf, xp.newaxis) == (math.e, math.pi, math.inf, None) and xp.nan != xp.nan
    assert [str(getattr(xp, name)) for name in DTYPES] == DTYPES


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    assert hasattr(em.EmberTensor, name)
