"""MAD-Lab's layers."""

from __future__ import annotations

from ember_ml import ops
from ember_ml.nn.layers import Mamba, MambaConfig
from tests.golden.case import Built, Case, Tensors, builder, with_weights


def _mamba(c: dict) -> Mamba:
    rank = None if c["dt_rank"] == "auto" else c["dt_rank"]
    return Mamba(MambaConfig(c["dim"], c["d_state"], c["expand"], c["d_conv"], rank, c["bias"], c["conv_bias"]))


def _mamba_weights(p: Tensors) -> Tensors:
    names = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias"}
    return {names.get(n, n): ops.squeeze(w, 1) if n == "conv1d.weight" else w for n, w in p.items()}


@builder("mad/mamba")
def mamba(case: Case, dtype: str) -> Built:
    """The selective state space."""
    module = _mamba(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, _mamba_weights(p)):
            return {"y": module(x["x"])[0]}

    return Built(forward, case.params(dtype))


def steps(module, x, state):
    """The outputs of `step` at every position of x (B, L, D), and the states before the last step and after it."""
    out, before = [], state
    for t in range(x.shape[1]):
        before = state
        y, state = module.step(x[:, t], state)
        out.append(y)
    return ops.stack(out, axis=1), before, state


@builder("mad/mamba_step")
def mamba_step(case: Case, dtype: str) -> Built:
    """Step by step from nothing. The original's convolution keeps the present input too: one more than Ember's."""
    module = _mamba(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, _mamba_weights(p)):
            parallel, _ = module(x["x"])
            y, before, after = steps(module, x["x"], module.initial_state(x["x"].shape[0], dtype))
        conv = ops.concat([before["conv"], after["conv"][:, -1:]], axis=1)
        return {"y_steps": y, "y_parallel": parallel, "final_conv_state": ops.swap_axes(conv), "final_ssm_state": after["h"]}

    return Built(forward, case.params(dtype))
