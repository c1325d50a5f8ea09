"""The kernels of the mixture of experts (metal/moe.metal, cuda/moe.cu)."""

from __future__ import annotations

from ember_ml.kernels.spec import Entry, KernelSpec

#: rows and width of the experts' outputs (N, D), tokens and slots of the routing (T, K)
_SIZES = (("expert_out", 0), ("expert_out", 1), ("inverse", 0), ("inverse", 1))
_DTYPES = ("float32", "float16", "bfloat16")

FORWARD = Entry("moe_combine_forward", ("expert_out", "inverse", "weights"), ("y",), _SIZES)
BACKWARD_ROWS = Entry("moe_combine_backward_rows", ("g", "expert_out", "inverse", "weights"), ("d_expert_out",), _SIZES)
BACKWARD_WEIGHTS = Entry("moe_combine_backward_weights", ("g", "expert_out", "inverse"), ("d_weights",), _SIZES)

#: moe_combine(expert_out (N, D), inverse int32 (T, K), weights float32 (T, K)) -> y (T, D) in expert_out's dtype
MOE_COMBINE = KernelSpec("moe_combine", "moe", (FORWARD,), _DTYPES, registers=32)

#: moe_combine_backward(g (T, D), expert_out, inverse, weights) -> d_expert_out (N, D), d_weights float32 (T, K).
#: A row that no pair owns gets zero, and so does the pair whose index is out of range: it owns no row.
MOE_COMBINE_BACKWARD = KernelSpec("moe_combine_backward", "moe", (BACKWARD_ROWS, BACKWARD_WEIGHTS), _DTYPES, registers=32)
