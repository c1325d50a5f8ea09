"""Every op, declared once. `support()` tells which engine runs which op how."""

from ember_ml.ops import random
from ember_ml.ops.activation import (
    elu, gelu, gelu_tanh, glu, hard_sigmoid, hard_swish, leaky_relu, log_sigmoid, log_softmax, mish, relu, relu6, relu_squared, selu, sigmoid,
    silu, softmax, softplus, softsign, tanh_shrink,
)
from ember_ml.ops.attention import scaled_dot_product_attention
from ember_ml.ops.conv import conv1d, short_conv
from ember_ml.ops.creation import arange, from_native, full, linspace, ones, ones_like, tensor, to, zeros, zeros_like
from ember_ml.ops.declare import REGISTRY, Op, op, support
from ember_ml.ops.elementwise import (
    abs, add, astype, atan2, clip, complex, conj, cos, divide, equal, erf, erfinv, exp, exp2, expm1, floor, floor_divide, greater,
    greater_equal, imag, isfinite, less, less_equal, log, log1p, logical_and, logical_not, logical_or, maximum,
    minimum, multiply, negative, not_equal, pow, real, remainder, round, rsqrt, sign, sin, sqrt, square, subtract,
    tanh, where,
)
from ember_ml.ops.fft import fft, ifft, irfft, rfft
from ember_ml.ops.fftconv import fftconv
from ember_ml.ops.fftconv_filter import PreparedFilter, prepare_filter
from ember_ml.ops.index import debug_checks, one_hot, put_add_along_axis, scatter_add, take, take_along_axis
from ember_ml.ops.linear import addmm, linear, matmul, outer
from ember_ml.ops.linear_cross_entropy import linear_cross_entropy
from ember_ml.ops.loss import cross_entropy
from ember_ml.ops.modal import modal_filter, modal_response, modal_state, modal_step
from ember_ml.ops.moe import Plan, grouped_linear, grouped_outer, moe_combine, moe_gather, moe_mlp, moe_plan
from ember_ml.ops.normalization import layer_norm, rms_norm
from ember_ml.ops.recurrence import (
    cfc, cumlogsumexp, cummax, cumsum, delta_rule, gated_delta_rule, gated_scan, gru, linear_attention, linear_scan, lstm,
    ltc, mlstm, over_chunks, rnn, selective_scan, wkv,
)
from ember_ml.ops.reduce import all, any, argmax, logsumexp, max, mean, min, norm, normalize, sum, var
from ember_ml.ops.shape import (
    broadcast_to, concat, expand_dims, flip, pad, permute_dims, repeat, reshape, split, squeeze, stack, swap_axes,
)
from ember_ml.ops.sort import argsort, sort, topk

__all__ = [name for name in dir() if not name.startswith("_")]
