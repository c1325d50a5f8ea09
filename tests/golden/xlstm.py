"""xLSTM's cells."""

from __future__ import annotations

import math

from ember_ml import ops
from ember_ml.ops.recurrence import cells
from tests.golden.case import Built, Case, Tensors, builder


def _time_second(x):
    """(B, H, L, ...) to (B, L, H, ...) and back."""
    return ops.swap_axes(x, 1, 2)


def _largest_exponent(i, f):
    """max of i_s + log f_{s+1} + ... + log f_t over all s <= t, for (B, L, H): (B, 1, H, 1)."""
    sums = ops.cumsum(-ops.softplus(-f), axis=1)
    return ops.expand_dims((ops.cummax(i - sums, axis=1) + sums).max(axis=1, keepdims=True), -1)


@builder("xlstm/mlstm_cell_functions")
def mlstm_cell_functions(case: Case, dtype: str) -> Built:
    """The three forms of the matrix memory. They differ in what scale eps is added: that of e^-m.

    The parallel form's m knows only the inputs, so there the state before the first step has m = -inf; the step and chunkwise forms
    begin with m = 0. One variant has one m for the whole sequence: its h follows from the one without eps and the divisor. The chunkwise form
    scales q where the others scale k.
    """
    c = case.config
    width, eps = c["head_dim"], 1e-6

    def forward(x: Tensors, _params: Tensors) -> Tensors:
        q, k, v = (_time_second(x[name]) for name in ("q", "k", "v"))
        i, f = (ops.squeeze(_time_second(x[f"{gate}gate_preact"]), -1) for gate in "if")
        small = 1.0 / math.sqrt(width)

        def run(q, k, m=0.0, eps=eps):
            memory = ops.zeros((c["batch"], c["num_heads"], width, width + 1), dtype, like=q)
            h, (memory, m) = ops.mlstm(q, k, v, i, f, (memory, memory[:, :, 0, 0] + m), eps=eps, chunk=c["chunk_size"])
            return _time_second(h), memory[..., :width], memory[..., width:], m.reshape((*m.shape, 1, 1))

        sums, _ = ops.linear_attention(q, k * small * ops.expand_dims(ops.exp(i), -1), v[..., :1].ones_like(),
                                       ops.expand_dims(-ops.softplus(-f), -1))
        divisor = _time_second(ops.maximum(ops.abs(sums), 1.0))
        one_m = _time_second(ops.exp(_largest_exponent(i, f)))
        step, chunked = run(q, k * small), run(q * small, k)
        return {"h_parallel": run(q, k * small, m=-math.inf)[0],
                "h_parallel_global_max": run(q, k * small, eps=0.0)[0] / (1.0 + eps * one_m / divisor),
                "h_recurrent": step[0], "C_last": step[1], "n_last": step[2], "m_last": step[3],
                "h_chunkwise": chunked[0], "C_last_chunkwise": chunked[1], "n_last_chunkwise": ops.squeeze(chunked[2], -1),
                "m_last_chunkwise": chunked[3]}

    return Built(forward, case.params(dtype))


@builder("xlstm/slstm_cell")
def slstm_cell(case: Case, dtype: str) -> Built:
    """The cell on gate pre-activations, from nothing and from a given state."""
    heads, width = case.config["num_heads"], case.config["D"]

    def run(x, p, state):
        R = ops.swap_axes(p["_recurrent_kernel_"])          # (head, gate and output, input) to (head, input, gate and output)
        y, last = ops.gated_scan(cells.SLSTM, x + p["_bias_"], R, state)
        return _time_second(ops.reshape(y, (*y.shape[:2], heads, width // heads))), ops.stack(list(last))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        y, state = run(x["x"], p, None)
        y0, state0 = run(x["x"], p, [x["state0"][i] for i in range(4)])
        return {"y": y, "state": state, "y_from_state0": y0, "state_from_state0": state0}

    return Built(forward, case.params(dtype))
