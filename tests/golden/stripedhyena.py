"""StripedHyena and Evo 2: filters, operators, blocks and models."""

from __future__ import annotations

import ember_ml as em
from ember_ml import ops
from ember_ml.interop.striped_hyena import channel_order, convolution_weights, filter_config
from ember_ml.nn.layers import GatedConv, GatedConvConfig, GatedMLP, GatedMLPConfig, RMSNorm, RMSNormConfig
from tests.golden.case import Built, Case, Tensors, builder, with_weights


@builder("stripedhyena/rmsnorm")
def rmsnorm(case: Case, dtype: str) -> Built:
    """eps is added to the root."""
    module = RMSNorm(RMSNormConfig(case.config["hidden_size"], case.config["eps"], eps_outside=True))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, {"weight": p["scale"]}):
            return {"y": module(x["x"])}

    return Built(forward, case.params(dtype))


@builder("stripedhyena/parallel_gated_mlp")
def gated_mlp(case: Case, dtype: str) -> Built:
    """l3(act(l1 x) l2 x), the inner size by its rule."""
    c = case.config
    module = GatedMLP(GatedMLPConfig(c["hidden_size"], c["inner_mlp_size"], c["mlp_activation"], multiple_of=c["inner_size_multiple_of"]),
                      key=em.random.key(0))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        named = {"glu.gate.weight": p["l1.weight"], "glu.up.weight": p["l2.weight"], "down.weight": p["l3.weight"]}
        with with_weights(module, named):
            return {"y": module(x["x"])}

    return Built(forward, case.params(dtype))


class Operator(GatedConv):
    """A gated convolution without its projections: the originals' filter modules take what was projected."""

    def __init__(self, config: GatedConvConfig):
        super().__init__(config, key=em.random.key(0))
        self.in_proj = self.out_proj = None


def operator_of(case: Case) -> Operator:
    """The operator of a case of StripedHyena, or of one of Evo 2's three kinds."""
    c = case.config
    kind = "hyena" if case.name.startswith("hyena") else case.name.split("_")[2]
    return Operator(GatedConvConfig(c["hidden_size"], filter_config(c, kind), c["short_filter_length"], c["short_filter_bias"]))


def original_short(state, order):
    """The original's state of the short convolution, (B, 3 D, taps - 1), its channels in their places."""
    inverse = sorted(range(len(order)), key=lambda i: order[i])
    return ops.take(ops.swap_axes(state), em.tensor(inverse), axis=1)


@builder("stripedhyena/hyena_filter_modal*", "stripedhyena/evo2_cascade_*")
def operator(case: Case, dtype: str) -> Built:
    """Filter and gates of the whole sequence; or a prefill, steps and their states."""
    c, module, order = case.config, operator_of(case), channel_order(case.config)

    def states(when: str, state, seen: int) -> Tensors:
        inner = state["filter"]
        if case.name.startswith("hyena"):
            return {f"{when}_fir_state": original_short(state["short"], order), f"{when}_iir_state": inner}
        kept = {"state.0": inner} if "hcl" in case.name else {"fir_inner_state.0": inner[:, :, max(0, inner.shape[2] - seen):]}
        return {f"{when}_fir_state.0": original_short(state["short"], order)} | {f"{when}_{name}": s for name, s in kept.items()}

    def forward(x: Tensors, p: Tensors) -> Tensors:
        z = ops.take(x["z"], em.tensor(order), axis=2)
        with with_weights(module, convolution_weights(p, "", c, module.config.filter)):
            y, _ = module.convolve(z)
            if "y" in case.expected:
                return {"y": y} | ({"h": ops.expand_dims(module.filter.kernel(c["L"]), 0)} if "h" in case.expected else {})
            out, state = {"y_parallel": y}, module.initial_state(c["batch"], dtype)
            out["y_prefill"], state = module.convolve(z[:, :c["prompt"]], state)
            out |= states("prefill", state, c["prompt"])
            ys = []
            for t in range(c["prompt"], z.shape[1]):
                y, state = module.convolve(z[:, t:t + 1], state)
                ys.append(y)
        return out | {"y_steps": ops.concat(ys, axis=1)} | states("final", state, z.shape[1])

    return Built(forward, case.params(dtype))
