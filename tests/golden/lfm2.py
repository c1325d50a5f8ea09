"""LFM2's operator."""

from __future__ import annotations

from ember_ml import ops
from ember_ml.nn.layers import GatedShortConv, GatedShortConvConfig
from tests.golden.case import Built, Case, Tensors, builder, with_weights
from tests.golden.mad import steps


@builder("liquid/lfm2_short_conv")
def lfm2_short_conv(case: Case, dtype: str) -> Built:
    """Whole, and a prompt followed by steps. The original's state keeps one input more than Ember's: the first of the last `taps`."""
    c = case.config
    module = GatedShortConv(GatedShortConvConfig(c["hidden_size"], c["conv_L_cache"], c["conv_bias"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        x, prompt = x["x"], c["prompt"]
        with with_weights(module, {n: ops.squeeze(w, 1) if w.ndim == 3 else w for n, w in p.items()}):
            y, _ = module(x)
            start = module.initial_state(x.shape[0], dtype)
            first, before = module(x[:, :prompt - 1], start)
            last, after = module(x[:, prompt - 1:prompt], before)
            y_steps, almost, final = steps(module, x[:, prompt:], after)

        def original(earlier, later):
            return ops.swap_axes(ops.concat([earlier[:, :1], later], axis=1))

        return {"y": y, "y_prefill": ops.concat([first, last], axis=1), "prefill_conv_state": original(before, after),
                "y_steps": y_steps, "final_conv_state": original(almost, final)}

    return Built(forward, case.params(dtype))
