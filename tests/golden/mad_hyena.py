"""MAD-Lab's Hyena operator, its filters, and the models that MAD trains on its tasks."""

from __future__ import annotations

import numpy as np

import ember_ml as em
from ember_ml import nn, ops
from ember_ml.interop.hyena_dna import filter_weights
from ember_ml.nn.layers import (
    Dense, DenseConfig, Hyena, HyenaConfig, Mamba, RationalFilter, RationalFilterConfig,
)
from tests.golden.case import Built, Case, Tensors, builder, with_weights
from tests.golden.mad import mamba_weights, perceptron_weights


def hyena_layer(c: dict) -> Hyena:
    """MAD's operator: d_inner, projections in groups, heads, an implicit filter (emb_dim, order, w) or a rational one (state_size, num_a)."""
    f, multi = c["filter_cfg"], c["num_heads"] > 1
    if "state_size" in f:
        options = dict(filter_kind="rational", filter=dict(d_state=f["state_size"], denominators=f.get("num_a")))
    else:
        options = dict(filter=dict(features=f.get("emb_dim", 3), width=f.get("order", 16), frequency=float(f.get("w", 1)), shift=f.get("shift", 0.0),
                                   learn_positions=True, depth=f.get("num_inner_mlps", 2)))
    return Hyena(HyenaConfig(c["dim"], c["max_length"], c["order"], c["short_filter_order"], d_inner=c["inner_factor"] * c["dim"],
                             activation={"id": "identity"}.get(c["activation"], c["activation"]), groups=c["proj_groups"],
                             head_dim=c["num_heads"] if multi else 1, **options))


def hyena_layer_weights(m: Hyena, p: Tensors, prefix: str = "") -> Tensors:
    """With several heads the original orders its blocks as first gate, second gate, v, and so does Ember."""
    named = {f"{layer}.{part}": p[f"{prefix}{layer}.{part}"] for layer in ("in_proj", "out_proj") for part in ("weight", "bias")}
    named |= {"short_weight": ops.squeeze(p[prefix + "short_filter.weight"], 1), "short_bias": p[prefix + "short_filter.bias"],
              "D": ops.expand_dims(p[prefix + "long_conv.bias"], 0)}
    if m.config.filter_kind == "rational":
        inner = _rational_weights(m.filter, p, prefix + "_rtf_of_long_conv.")
    else:
        inner = filter_weights(m.filter, p, prefix + "long_conv.filter.")
    return named | {f"filter.{name}": w for name, w in inner.items()}


@builder("mad/hyena", "mad/hyena_rtf", "mad/mh_hyena")
def hyena(case: Case, dtype: str) -> Built:
    """The operator with its kinds of filters and heads."""
    module = hyena_layer(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, hyena_layer_weights(module, p)):
            return {"y": module(x["x"])[0]}

    return Built(forward, case.params(dtype))


def _rational_weights(m: RationalFilter, p: Tensors, prefix: str = "") -> Tensors:
    a, b = ops.split(p[prefix + "ab"], (m.a.shape[0], m.b.shape[0]))
    return {"a": a, "b": b, "h_0": p[prefix + "h_0"]}


def _rational(c: dict) -> RationalFilter:
    return RationalFilter(RationalFilterConfig(c["dim"], c["trunc_len"], c["state_size"], c["num_a"]))


@builder("mad/rtf_filter")
def rtf_filter(case: Case, dtype: str) -> Built:
    """The filter, at L and whole, and its convolution."""
    module = _rational(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, _rational_weights(module, p)):
            k, whole = module(case.config["L"]), module()
        return {"k": ops.expand_dims(k, 0), "k_full": ops.expand_dims(whole, 0), "y": ops.fftconv(x["u"], k, x["D"])}

    return Built(forward, case.params(dtype))


@builder("mad/rtf_filter_step")
def rtf_filter_step(case: Case, dtype: str) -> Built:
    """The original's steps are a little off: its output weights solve (I - A^n) c = b, which ought to be (I - A^n)^T c = b, and it reads
    the present through h_0, without what is folded onto tap 0. Both are made so here, to show that the recurrence is the same; that
    Ember's own steps are its convolution, is asserted here, too.
    """
    module = _rational(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        u = x["u"]
        with with_weights(module, _rational_weights(module, p)):
            y = ops.swap_axes(ops.fftconv(ops.swap_axes(u), module(case.config["L"])))
            a, b = (np.asarray(t.numpy(), np.float64) for t in (module.denominators(), module.b))
            shift = np.stack([np.eye(a.shape[1], k=-1) - np.eye(a.shape[1])[:, :1] * row for row in a])
            power = np.linalg.matrix_power(shift, case.config["trunc_len"])
            c = em.tensor(np.linalg.solve(np.eye(a.shape[1]) - power, b[..., None])[..., 0], dtype=dtype)

            def walk(read_out):
                state, out = module.initial_state(u.shape[0], dtype), []
                for t in range(u.shape[1]):
                    step, state = module.step(u[:, t], state, read_out)
                    out.append(step)
                return ops.stack(out, axis=1), state

            own, _ = walk(module.read_out())
            np.testing.assert_allclose(own.numpy(), y.numpy(), **case.tolerance["forward_f64" if dtype == "float64" else "forward"])
            y_steps, state = walk((c, module.h_0))
        return {"c": c, "y_steps": y_steps, "y_parallel": y, "final_state": ops.swap_axes(state)}

    return Built(forward, case.params(dtype))


def _layers_of(c: dict) -> list[nn.Block]:
    """The blocks of MAD's small models: x + layer(norm(x))."""
    norm = {"layernorm": "layer_norm", "rmsnorm": "rms_norm"}[c["norm"]]
    kinds = {"hyena": ("hyena", dict(l_max=c["max_length"], d_inner=2 * c["dim"], groups=2,
                                     filter=dict(features=5, width=4, frequency=4.0, shift=0.0, learn_positions=True))),
             "mlp": ("mlp", dict(d_inner=2 * c["dim"], bias=False)), "swiglu": ("gated_mlp", dict(multiple_of=8)),
             "mamba": ("mamba", dict(d_state=4))}
    return [nn.BlockConfig(d_input=c["dim"], layer=kinds[name][0], layer_config=kinds[name][1], norm=norm) for name in c["layers"]]


def _block_weights(block: nn.Block, p: Tensors, prefix: str) -> Tensors:
    """`prefix`0. is the norm, `prefix`1. the layer."""
    inner = {n.removeprefix(prefix + "1."): w for n, w in p.items() if n.startswith(prefix + "1.")}
    layer = (hyena_layer_weights(block.layer, inner) if isinstance(block.layer, Hyena) else mamba_weights(inner) if isinstance(block.layer, Mamba)
             else perceptron_weights(inner))
    return ({f"layer.{n}": w for n, w in layer.items()}
            | {f"norm.{n.removeprefix(prefix + '0.')}": w for n, w in p.items() if n.startswith(prefix + "0.")})


@builder("mad/language_model")
def language_model(case: Case, dtype: str) -> Built:
    """Embedding, blocks, norm, and a head with bias."""
    c = case.config
    model = nn.Model(nn.ModelConfig(blocks=_layers_of(c), vocab_size=c["vocab_size"], norm=c["norm"].replace("norm", "_norm")))
    head = Dense(DenseConfig(c["dim"], c["vocab_size"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        named = {"embedding.weight": p["token_embeds.weight"]} | {f"norm.{part}": p[f"unembed.0.{part}"] for part in ("weight", "bias")}
        for i, block in enumerate(model.blocks):
            named |= {f"blocks.{i}.{n}": w for n, w in _block_weights(block, p, f"model.{i}.").items()}
        with with_weights(model, named), with_weights(head, _below(p, "unembed.1.")):
            return {"logits": head(model(x["input_ids"])[0])}

    return Built(forward, case.params(dtype))


def _below(p: Tensors, prefix: str) -> Tensors:
    return {n.removeprefix(prefix): w for n, w in p.items() if n.startswith(prefix)}


@builder("mad/auto_encoder")
def auto_encoder(case: Case, dtype: str) -> Built:
    """The blocks make one code of the sequence, the last output or their mean; a perceptron reads the tokens from code plus place."""
    c = case.config
    model = nn.models.AutoEncoder(nn.models.AutoEncoderConfig(_layers_of(c), c["vocab_size"], c["max_length"],
                                                              c["norm"].replace("norm", "_norm"), c["global_pool"]))
    places = {"token_embeds": "embedding", "decoder.0": "norms.0", "decoder.1": "maps.0", "decoder.3": "norms.1", "decoder.4": "maps.1",
              "unembed.0": "norms.2", "unembed.1": "maps.2"}

    def forward(x: Tensors, p: Tensors) -> Tensors:
        named = {}
        for original, ember in places.items():
            named |= {f"{ember}.{part}": w for part, w in _below(p, original + ".").items()}
        for i, block in enumerate(model.blocks):
            named |= {f"blocks.{i}.{n}": w for n, w in _block_weights(block, p, f"encoder.{i}.").items()}
        with with_weights(model, named):
            return {"logits": model(x["input_ids"]), "encoding": model.encode(x["input_ids"])}

    return Built(forward, case.params(dtype))
