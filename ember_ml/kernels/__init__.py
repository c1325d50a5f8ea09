"""Ember's own Metal and CUDA kernels, as far as they need no array library: texts, specs, and the first-use check."""

from ember_ml.kernels.moe import MOE_COMBINE, MOE_COMBINE_BACKWARD
from ember_ml.kernels.selfcheck import KernelWarning, Outcome, outcomes, trusted
from ember_ml.kernels.source import digest, source_text
from ember_ml.kernels.spec import DTYPES, LANES, THREADS, Entry, KernelSpec, row_block

__all__ = ["DTYPES", "Entry", "KernelSpec", "KernelWarning", "LANES", "MOE_COMBINE", "MOE_COMBINE_BACKWARD", "Outcome",
           "THREADS", "digest", "outcomes", "row_block", "source_text", "trusted"]
