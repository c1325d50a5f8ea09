"""HyenaDNA's blocks and models, the long convolution and the residual kinds."""

from __future__ import annotations

import ember_ml as em
from ember_ml import nn, ops
from ember_ml.interop.hyena_dna import block_weights, model_weights
from ember_ml.nn.layers import LongConv, LongConvConfig
from ember_ml.nn.module import Module
from tests.golden.case import Built, Case, Tensors, builder, with_weights
from tests.golden.hyena import filter_options


@builder("hyena/long_conv*")
def long_conv(case: Case, dtype: str) -> Built:
    """The kernel in use, and the layer's output in the layout of the case."""
    c = case.config
    module = LongConv(LongConvConfig(c["d_model"], c["l_max"], copies=c["channels"], squash=c["lam"], activation=c["activation"],
                                     bidirectional=c["bidirectional"],
                                     smoothing=c["ma_window_len"] if c["use_ma_smoothing"] else None), key=em.random.key(0))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        kernels = p["kernel.kernel"]

        named = {"kernel": ops.reshape(kernels[:c["channels"]], (-1, c["l_max"])), "D": ops.reshape(p["D"], (-1,)),
                 "out_proj.bias": ops.reshape(p["output_linear.0.bias"], (-1,)),
                 "out_proj.weight": ops.reshape(p["output_linear.0.weight"], module.out_proj.weight.shape)}
        if c["bidirectional"]:
            named["future"] = ops.reshape(kernels[c["channels"]:], (-1, c["l_max"]))
        u = ops.swap_axes(x["u"]) if c["transposed"] else x["u"]
        with with_weights(module, named):
            y, _state = module(u)
            kernel = ops.reshape(module.filters(ops.reshape(kernels, (-1, c["l_max"]))), kernels.shape)
        return {"kernel": kernel, "y": ops.swap_axes(y) if c["transposed"] else y}

    return Built(forward, case.params(dtype))


class Pair(Module):
    """A mixer's block and an MLP's block: one block of the original."""

    def __init__(self, mixer: nn.Block, mlp: nn.Block):
        self.mixer, self.mlp = mixer, mlp


@builder("hyena/block_*")
def block(case: Case, dtype: str) -> Built:
    """The original's prenorm block leaves its last addition to the next one: it returns the MLP's output and the residual."""
    c = case.config
    common = dict(norm="layer_norm", prenorm=c["prenorm"])
    if c["mixer"] == "mha":
        mixer = nn.Block(c["d_model"], layer="self_attention", layer_config={"heads": c["num_heads"]}, **common)
    else:
        mixer = nn.Block(c["d_model"], layer="hyena", layer_config={
            "l_max": c["l_max"], "order": c["order"], "filter": {"width": c["filter_order"], **filter_options(c)}}, **common)
    pair = Pair(mixer, nn.Block(c["d_model"], layer="mlp", layer_config={"d_inner": c["d_inner"]}, **common))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(pair, block_weights((pair.mixer, pair.mlp), p, "", "mixer.", "mlp.")):
            if not c["prenorm"]:
                return {"hidden_out": pair.mlp(pair.mixer(x["hidden"])[0])[0]}
            out = {}
            for name, start in (("", x["hidden"] + x["residual"]), ("_first", x["hidden"])):
                residual = pair.mixer(start)[0]
                out[f"hidden_out{name}"] = pair.mlp.layer(pair.mlp.norm(residual))
                out[f"residual_out{name}"] = residual
            return out

    return Built(forward, case.params(dtype))


@builder("hyena/hyenadna_*")
def hyena_dna(case: Case, dtype: str) -> Built:
    """Hidden states, next-token logits of the tied head, or class logits of the mean hidden state."""
    c = case.config
    model = nn.HyenaDNA(nn.HyenaDNAConfig(
        c["vocab_size"], c["d_model"], c["n_layer"], c["l_max"], d_inner=c["d_inner"], order=c["order"],
        filter={"width": c["filter_order"], **filter_options(c)}, vocab_multiple=c["pad_vocab_size_multiple"]), key=em.random.key(0))
    order_last = 1 if case.meta["source"]["object"].startswith("standalone") else c["order"] - 1

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(model, model_weights(model, p, order_last)):
            if "hidden" in case.expected:
                return {"hidden": model.hidden(x["input_ids"])[0]}
            if "n_classes" not in c:
                return {"logits": model(x["input_ids"])[0]}
            pooled = ops.mean(model.hidden(x["input_ids"])[0], axis=1)
        return {"logits": ops.linear(pooled, p["head.output_transform.weight"], p["head.output_transform.bias"])}

    return Built(forward, case.params(dtype))


@builder("hyena/sequence_residual_block")
def residual_block(case: Case, dtype: str) -> Built:
    """The four kinds of connection around a perceptron."""
    c = case.config
    kinds = {"residual": "residual", "affine": "affine_residual", "highway": "highway_residual", "decay": "decay_residual"}
    blocks = {kind: nn.Block(c["d_model"], layer="mlp", layer_config={"d_inner": 2 * c["d_model"], "activation": "gelu"},
                             norm="layer_norm", prenorm=c["prenorm"], residual=name, residual_config={"depth": c["i_layer"]})
              for kind, name in kinds.items()}

    def forward(x: Tensors, p: Tensors) -> Tensors:
        out = {}
        for kind, module in blocks.items():
            own = {name.removeprefix(f"{kind}."): w for name, w in p.items() if name.startswith(f"{kind}.")}
            names = {"layer.ff.0.0": "layer.fc1", "layer.ff.2": "layer.fc2", "norm.norm": "norm"}
            named = {}
            for name, w in own.items():
                head, _, part = name.rpartition(".")
                named[f"{names.get(head, head)}.{part}"] = w
            with with_weights(module, named):
                out[kind] = module(x["x"])[0]
        return out

    return Built(forward, case.params(dtype))


