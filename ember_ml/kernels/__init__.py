"""Ember's own Metal and CUDA kernels, as far as they need no array library: texts, specs, and the first-use check."""

from ember_ml.kernels.fftconv import FFTCONV, FFTCONV_GRAD
from ember_ml.kernels.moe import MOE_COMBINE, MOE_COMBINE_BACKWARD, MOE_GATHER, MOE_PLAN, MOE_SWIGLU, MOE_SWIGLU_BACKWARD
from ember_ml.kernels.route import MOE_CHOOSE, MOE_TOPK, MOE_WEIGH, MOE_WEIGH_GRAD, NEVER
from ember_ml.kernels.scan import LINEAR_SCAN, LINEAR_SCAN_GRAD, SELECTIVE_SCAN, SELECTIVE_SCAN_GRAD
from ember_ml.kernels.selfcheck import KernelWarning, Outcome, outcomes, trusted
from ember_ml.kernels.shortconv import SHORT_CONV, SHORT_CONV_GRAD
from ember_ml.kernels.source import digest, source_text
from ember_ml.kernels.spec import DTYPES, LANES, THREADS, Entry, KernelSpec

#: every kernel but those of fftconv, which have plans besides a dtype; those of one file stand together
SPECS = (MOE_COMBINE, MOE_COMBINE_BACKWARD, MOE_GATHER, MOE_PLAN, MOE_SWIGLU, MOE_SWIGLU_BACKWARD, MOE_CHOOSE, MOE_TOPK, MOE_WEIGH,
         MOE_WEIGH_GRAD, LINEAR_SCAN, LINEAR_SCAN_GRAD, SELECTIVE_SCAN, SELECTIVE_SCAN_GRAD, SHORT_CONV, SHORT_CONV_GRAD)

#: what every engine makes launchers of
ALL_SPECS = (*SPECS, FFTCONV, FFTCONV_GRAD)

__all__ = ["ALL_SPECS", "DTYPES", "Entry", "FFTCONV", "FFTCONV_GRAD", "KernelSpec", "KernelWarning", "LANES", "LINEAR_SCAN",
           "LINEAR_SCAN_GRAD", "MOE_CHOOSE", "MOE_COMBINE", "MOE_COMBINE_BACKWARD", "MOE_GATHER", "MOE_PLAN", "MOE_SWIGLU",
           "MOE_SWIGLU_BACKWARD", "MOE_TOPK", "MOE_WEIGH", "MOE_WEIGH_GRAD", "NEVER", "Outcome", "SELECTIVE_SCAN", "SELECTIVE_SCAN_GRAD",
           "SHORT_CONV", "SHORT_CONV_GRAD", "SPECS", "THREADS", "digest", "outcomes", "source_text", "trusted"]
