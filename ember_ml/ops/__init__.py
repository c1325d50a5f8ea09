"""Every op, declared once. `support()` tells which engine runs which op how."""

from ember_ml.ops import random
from ember_ml.ops.activation import (
    elu, gelu, gelu_tanh, glu, hard_sigmoid, hard_swish, leaky_relu, log_sigmoid, log_softmax, mish, relu, relu6, relu_squared, selu, sigmoid,
    silu, softmax, softplus, softsign, tanh_shrink,
)
from ember_ml.ops.attention import scaled_dot_product_attention
from ember_ml.ops.conv import conv1d, short_conv
from ember_ml.ops.bits import (
    bitwise_and, bitwise_invert, bitwise_left_shift, bitwise_or, bitwise_right_shift, bitwise_xor, copysign, nextafter, signbit,
)
from ember_ml.ops.creation import (
    arange, asarray, empty, empty_like, eye, from_dlpack, from_native, full, full_like, linspace, ones, ones_like, tensor, to, zeros, zeros_like,
)
from ember_ml.ops.data_type import astype, can_cast, finfo, iinfo, isdtype, result_type
from ember_ml.ops.declare import REGISTRY, Op, op, support
from ember_ml.ops.einsum import einsum
from ember_ml.ops.elementwise import (
    abs, add, atan2, ceil, clip, complex, conj, cos, divide, equal, erf, erfinv, exp, exp2, expm1, floor, floor_divide, greater,
    greater_equal, imag, isfinite, isinf, isnan, less, less_equal, log, log1p, log2, log10, logaddexp, logical_and, logical_not,
    logical_or, logical_xor, maximum, minimum, multiply, negative, not_equal, positive, pow, real, reciprocal, remainder, round, rsqrt,
    sign, sin, sqrt, square, subtract, tanh, trunc, where,
)
from ember_ml.ops.fft import (
    fft, fftfreq, fftn, fftshift, hfft, ifft, ifftn, ifftshift, ihfft, irfft, irfftn, rfft, rfftfreq, rfftn,
)
from ember_ml.ops.fftconv import fftconv
from ember_ml.ops.fftconv_filter import PreparedFilter, prepare_filter
from ember_ml.ops.index import debug_checks, nonzero, one_hot, put_add_along_axis, scatter_add, take, take_along_axis
from ember_ml.ops.linalg import (
    cholesky, cross, det, diagonal, eig, eigh, eigvals, eigvalsh, inv, matrix_norm, matrix_power, matrix_rank, pinv, qr, slogdet, solve, svd,
    svdvals, tensordot, trace, vecdot, vector_norm,
)
from ember_ml.ops.linear import addmm, linear, matmul, outer
from ember_ml.ops.linear_cross_entropy import linear_cross_entropy
from ember_ml.ops.loss import cross_entropy
from ember_ml.ops.modal import modal_filter, modal_response, modal_state, modal_step
from ember_ml.ops.moe import Plan, grouped_linear, grouped_outer, moe_combine, moe_gather, moe_mlp, moe_plan
from ember_ml.ops.normalization import layer_norm, rms_norm
from ember_ml.ops.rearrange import (
    broadcast_arrays, broadcast_shapes, matrix_transpose, meshgrid, moveaxis, repeat, roll, tile, tril, triu, unstack,
)
from ember_ml.ops.recurrence import (
    cfc, cumlogsumexp, cummax, cummin, cumprod, cumsum, cumulative_prod, cumulative_sum, delta_rule, diff, gated_delta_rule, gated_scan, gru, linear_attention, linear_scan, lstm,
    ltc, mlstm, over_chunks, rnn, selective_scan, wkv,
)
from ember_ml.ops.reduce import (
    all, any, argmax, argmin, count_nonzero, logsumexp, max, mean, min, norm, normalize, prod, std, sum, var,
)
from ember_ml.ops.rope import rope
from ember_ml.ops.search import isin, searchsorted, unique_all, unique_counts, unique_inverse, unique_values
from ember_ml.ops.segment import associative_scan, segment_mean, segment_sum
from ember_ml.ops.shape import (
    broadcast_to, concat, expand_dims, flip, pad, permute_dims, reshape, split, squeeze, stack, swap_axes,
)
from ember_ml.ops.sort import argsort, sort, topk
from ember_ml.ops.special import beta, digamma, gamma, lgamma, trigamma
from ember_ml.ops.trigonometry import acos, acosh, asin, asinh, atan, atanh, cosh, hypot, sinh, tan
from ember_ml.ops.windows import (
    avg_pool1d, avg_pool2d, conv2d, conv_transpose1d, conv_transpose2d, max_pool1d, max_pool2d,
)

__all__ = [name for name in dir() if not name.startswith("_")]
