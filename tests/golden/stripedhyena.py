"""StripedHyena and Evo 2: filters, operators, blocks and models."""

from __future__ import annotations

import ember_ml as em
from ember_ml import nn, ops
from ember_ml.interop.striped_hyena import block_weights, channel_order, convolution_weights, filter_config, model_config, model_weights
from ember_ml.nn.layers import GatedConv, GatedConvConfig, GatedMLP, GatedMLPConfig, RMSNorm, RMSNormConfig, SelfAttention
from ember_ml.nn.models.striped_hyena import striped_blocks
from ember_ml.nn.module import Module
from ember_ml.registry import to_dict
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
        kept = {"state.0": inner} if "hcl" in case.name else {"fir_inner_state.0": kept_inputs(inner, seen)}
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


def model_of(c: dict, weights: dict) -> nn.Model:
    """The model of an original's configuration; the attention turns at the rates that the case has, which are rounded to float32."""
    plain = to_dict(striped_blocks(model_config(c)))
    for i, one in enumerate(plain["blocks"]):
        if one["layer"] == "self_attention":
            name = f"blocks.{i // 2}.inner_mha_cls.rotary_emb.inv_freq"
            one["layer_config"]["rope"]["rates"] = weights[name if name in weights else "inner_mha_cls.rotary_emb.inv_freq"].tolist()
    return nn.Model.from_config(plain, key=em.random.key(0))


class Pair(Module):
    """A mixer's block and an MLP's block: one block of the original."""

    def __init__(self, mixer: nn.Block, mlp: nn.Block):
        self.mixer, self.mlp = mixer, mlp


@builder("stripedhyena/gated_conv_block", "stripedhyena/attention_block")
def block(case: Case, dtype: str) -> Built:
    """A whole block, with and without the original's padding mask, which is laid over the parts here.

    A causal model does not need one: what comes after a sequence has no effect on it.
    """
    c = case.config
    kind = "attention" if case.name.startswith("attention") else "hyena_modal"
    first = model_of({**c, "num_layers": 1, "attn_layer_idxs": [0] if kind == "attention" else []}, case.weights)
    pair = Pair(*first.blocks)

    def masked(u, mask):
        norm, layer = pair.mixer.norm, pair.mixer.layer
        if kind == "attention":
            return (layer(norm(u * mask))[0] + u * mask) * mask
        z, _ = layer.short(layer.in_proj(norm(u)) * mask)
        after, before, v = ops.split(ops.swap_axes(z * mask), 3, axis=1)
        y, _ = layer.filter(v, None, before, after)
        return (layer.out_proj(ops.swap_axes(y)) + u) * mask

    def forward(x: Tensors, p: Tensors) -> Tensors:
        mask = ops.expand_dims(x["padding_mask"], -1)
        with with_weights(pair, block_weights((pair.mixer, pair.mlp), p, "", c, "mixer.", "mlp.")):
            return {"y": pair.mlp(pair.mixer(x["u"])[0])[0], "y_masked": pair.mlp(masked(x["u"], mask))[0]}

    return Built(forward, case.params(dtype))


def kept_inputs(state, seen: int):
    """The inputs that a filter of taps has really seen of those that it keeps."""
    return state[:, :, max(0, state.shape[2] - seen):]


@builder("stripedhyena/model*", "stripedhyena/evo2_model*")
def model(case: Case, dtype: str) -> Built:
    """Logits of a sequence; or of a prompt and of the tokens after it, with the states of every kind."""
    c, order = case.config, channel_order(case.config)
    module = model_of(c, case.weights)

    def states(when: str, state, seen: int) -> Tensors:
        out = {}
        for i, mixer in enumerate(module.blocks[::2]):
            s, kind = state[2 * i], next((k for k in ("hcs", "hcm", "hcl") if i in c.get(f"{k}_layer_idxs", ())), None)
            if isinstance(mixer.layer, SelfAttention):
                out[f"{when}_kv.{i}"] = ops.permute_dims(ops.stack([s["k"], s["v"]], axis=1), (0, 3, 1, 2, 4))
                continue
            name = f"{when}_{kind}_" if kind else f"{when}_"
            out[f"{name}fir_state.{i}"] = original_short(s["short"], order)
            inner = {"hcl": "state", None: "iir_state"}.get(kind, "fir_inner_state")
            out[f"{name}{inner}.{i}"] = kept_inputs(s["filter"], seen) if inner == "fir_inner_state" else s["filter"]
        return out

    def forward(x: Tensors, p: Tensors) -> Tensors:
        x = x["input_ids"]
        with with_weights(module, model_weights(module, p, c)):
            whole, _ = module(x)
            if "prompt" not in c:
                return {"logits": whole}
            prefill, state = module(x[:, :c["prompt"]], module.initial_state(c["batch"], dtype))
            out = {"logits_parallel": whole, "logits_prefill": prefill} | states("prefill", state, c["prompt"])
            logits = []
            for t in range(c["prompt"], x.shape[1]):
                y, state = module.step(x[:, t], state)
                logits.append(y)
        out |= {"logits_steps": ops.stack(logits, axis=1)} | states("final", state, x.shape[1])
        return {name: out[name] for name in case.expected}

    return Built(forward, case.params(dtype))
