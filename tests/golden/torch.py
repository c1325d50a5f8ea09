"""The functions and layers of torch."""

from __future__ import annotations

from ember_ml import ops
from ember_ml.nn.layers import GRU, LSTM, RNN, LayerNorm, RMSNorm
from ember_ml.ops.recurrence import cells
from tests.golden.case import Built, Case, Tensors, builder, with_weights


@builder("torch/conv1d_depthwise")
def depthwise(case: Case, dtype: str) -> Built:
    """The short convolution is causal: torch's output with padding K - 1 is that of the input with K - 1 zeros behind it."""
    padding = case.config["padding"]

    def forward(x: Tensors, p: Tensors) -> Tensors:
        longer = ops.pad(x["x"], ((0, 0), (0, 0), (0, padding)))
        return {"y": ops.short_conv(longer, ops.squeeze(p["weight"], 1), p.get("bias"))}

    return Built(forward, case.params(dtype))


@builder("torch/layernorm", "torch/rmsnorm")
def norm(case: Case, dtype: str) -> Built:
    """Both norms as layers."""
    component = LayerNorm if case.name == "layernorm" else RMSNorm
    module = component(component.Config(case.config["dim"], eps=case.config["eps"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, p):
            return {"y": module(x["x"])}

    return Built(forward, case.params(dtype))


@builder("torch/scaled_dot_product_attention")
def attention(case: Case, dtype: str) -> Built:
    """Plain, causal, boolean mask, own scale, and grouped queries by repeating key heads."""
    c = case.config

    def forward(x: Tensors, _params: Tensors) -> Tensors:
        q, k, v = x["q"], x["k"], x["v"]
        attend = ops.scaled_dot_product_attention
        times = c["heads"] // c["kv_heads"]
        shared = [ops.repeat(t[:, :c["kv_heads"]], times, axis=1) for t in (k, v)]
        return {"y": attend(q, k, v), "y_causal": attend(q, k, v, causal=True), "y_mask": attend(q, k, v, mask=x["mask"]),
                "y_scale": attend(q, k, v, scale=c["scale"]), "y_gqa": attend(q, *shared)}

    return Built(forward, case.params(dtype))


RECURRENT = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


def _layer(kind: str, d_input: int, p: Tensors, end: str):
    """An Ember layer for one direction of one of torch's layers, and its tensors. torch's two biases are one where both are added."""
    width = p["weight_hh" + end].shape[1]
    layer = RECURRENT[kind](RECURRENT[kind].Config(d_input, width))
    first, second = p["bias_ih" + end], p["bias_hh" + end]
    weights = {"weight_ih": p["weight_ih" + end], "weight_hh": p["weight_hh" + end], "bias": first + second}
    if kind == "gru":                                      # its third gate's recurrent bias stands inside the reset gate
        weights["bias"] = first + ops.concat([second[:2 * width], second[2 * width:].zeros_like()])
        weights["bias_inner"] = second[2 * width:]
    return layer, weights


def _network(kind: str, c: dict, x, p: Tensors, state: dict):
    """torch's stacked, bidirectional network: (y, last state with layers and directions on axis 0)."""
    ends, last = [""] + (["_reverse"] if c.get("bidirectional") else []), {name: [] for name in state}
    at = 0
    for level in range(c.get("num_layers", 1)):
        found = []
        for end in ends:
            layer, weights = _layer(kind, x.shape[-1], p, f"_l{level}{end}")
            start = {name: s[at] for name, s in state.items()}
            with with_weights(layer, weights):
                y, after = layer(ops.flip(x, axis=1) if end else x, start)
            found.append(ops.flip(y, axis=1) if end else y)
            for name, s in after.items():
                last[name].append(s)
            at += 1
        x = found[0] if len(found) == 1 else ops.concat(found, axis=-1)
    return x, {name: ops.stack(parts) for name, parts in last.items()}


@builder("torch/lstm", "torch/gru", "torch/rnn_tanh", "torch/lstm_stacked_bidirectional", "torch/gru_stacked_bidirectional")
def recurrent(case: Case, dtype: str) -> Built:
    """Layers one on the other, both directions side by side."""
    kind = case.name.partition("_")[0]

    def forward(x: Tensors, p: Tensors) -> Tensors:
        state = {"h": x["h0"]} | ({"c": x["c0"]} if "c0" in x else {})
        y, last = _network(kind, case.config, x["x"], p, state)
        from_nothing, _ = _network(kind, case.config, x["x"], p, {name: s.zeros_like() for name, s in state.items()})
        return {"y": y, "y_zero_state": from_nothing, "hn": last["h"]} | ({"cn": last["c"]} if "c" in last else {})

    return Built(forward, case.params(dtype))


@builder("torch/lstm_cell", "torch/gru_cell")
def cell(case: Case, dtype: str) -> Built:
    """One step."""
    kind = case.name.partition("_")[0]

    def forward(x: Tensors, p: Tensors) -> Tensors:
        layer, weights = _layer(kind, case.config["input_size"], p, "")
        state = {"h": x["h0"]} | ({"c": x["c0"]} if "c0" in x else {})
        with with_weights(layer, weights):
            y, after = layer.step(x["x"], state)
        return {"h1": y} | ({"c1": after["c"]} if "c" in after else {})

    return Built(forward, case.params(dtype))


@builder("torch/lstm_projection")
def lstm_projection(case: Case, dtype: str) -> Built:
    """h = W_hr (sig(o) tanh(c)): the projection goes into the recurrent matrix, W_hh W_hr, and the first h0 into the input."""
    def run(x, p, h, c):
        recurrent, w_hr = p["weight_hh_l0"], p["weight_hr_l0"]
        first = ops.linear(h, recurrent)
        wide = ops.linear(x, p["weight_ih_l0"], p["bias_ih_l0"] + p["bias_hh_l0"])
        wide = ops.concat([wide[:, :1] + ops.expand_dims(first, 1), wide[:, 1:]], axis=1)
        matrix = ops.expand_dims(ops.swap_axes(ops.matmul(recurrent, w_hr)), 0)
        y, (last, c) = ops.gated_scan(cells.LSTM, wide, matrix, (c.zeros_like(), c))
        return ops.linear(y, w_hr), ops.linear(last, w_hr), c

    def forward(x: Tensors, p: Tensors) -> Tensors:
        y, h, c = run(x["x"], p, x["h0"][0], x["c0"][0])
        still, _, _ = run(x["x"], p, x["h0"][0].zeros_like(), x["c0"][0].zeros_like())
        return {"y": y, "hn": ops.expand_dims(h, 0), "cn": ops.expand_dims(c, 0), "y_zero_state": still}

    return Built(forward, case.params(dtype))
