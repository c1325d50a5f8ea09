"""Parity: what the engines compute, compared with each other and with a yardstick."""

from ember_ml.parity.compare import Row, compare, row
from ember_ml.parity.kernels import compare_kernels
from ember_ml.parity.ops import compare_ops
from ember_ml.parity.run import compare_batch, compare_run
from ember_ml.parity.table import render

__all__ = ["Row", "compare", "compare_batch", "compare_kernels", "compare_ops", "compare_run", "render", "row"]
