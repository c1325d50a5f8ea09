"""xLSTM: cells, layers, blocks and models."""

from __future__ import annotations

import math

import ember_ml as em
from ember_ml import ops
from ember_ml.interop.xlstm import mlstm_weights, model_config, model_weights, slstm_weights
from ember_ml.nn.layers import MLSTM, SLSTM, MLSTMConfig, SLSTMConfig
from ember_ml.nn.models import XLSTM, XLSTMConfig, XLSTMLarge
from ember_ml.ops.recurrence import cells
from tests.golden.case import Built, Case, Tensors, builder, with_weights


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


def with_conv(state, x, taps: int):
    """The original's state of a convolution, the last `taps` inputs, from Ember's last taps - 1 before x and x itself (B, L, D)."""
    joined = ops.concat([state, x], axis=1)
    return joined[:, joined.shape[1] - taps:]


def mlstm_layer_of(c: dict) -> MLSTM:
    """The layer of a case's config."""
    return MLSTM(MLSTMConfig(c["D"], c["num_heads"], c["proj_factor"], c["conv1d_kernel_size"], c["qkv_proj_blocksize"], c["bias"],
                             c["round_proj_up_to_multiple_of"]), key=em.random.key(0))


def slstm_layer_of(c: dict) -> SLSTM:
    """The layer of a case's config."""
    return SLSTM(SLSTMConfig(c["D"], c["num_heads"], c["conv1d_kernel_size"] or None, c["function"]), key=em.random.key(0))


def parallel_state(layer, batch: int, dtype: str):
    """The state from which the original's parallel form computes: its m knows only the inputs, so that eps has another scale."""
    state = layer.initial_state(batch, dtype)
    return state | {"m": state["m"] - math.inf}


def steps(layer, x, state):
    """(outputs at every position, the states after each)."""
    ys, states = [], []
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        ys.append(y)
        states.append(state)
    return ops.stack(ys, axis=1), states


@builder("xlstm/mlstm_layer*")
def mlstm_layer(case: Case, dtype: str) -> Built:
    """The whole sequence at once, or step by step with states."""
    c = case.config
    layer = mlstm_layer_of(c)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        x = x["x"]
        with with_weights(layer, mlstm_weights(p, bias=c["bias"])):
            y, _ = layer(x, parallel_state(layer, c["batch"], dtype))
            if "y" in case.expected:
                return {"y": y}
            found, states = steps(layer, x, layer.initial_state(c["batch"], dtype))
            out = {"y_steps": found, "y_parallel": y}
            inner = ops.split(layer.in_proj(x), 2, axis=-1)[0]
        for name, at in (("mid", x.shape[1] // 2), ("final", x.shape[1] - 1)):
            memory, m = states[at]["memory"], states[at]["m"]
            width = memory.shape[-1] - 1
            out |= {f"{name}_C": memory[..., :width], f"{name}_n": memory[..., width:], f"{name}_m": m.reshape((*m.shape, 1, 1)),
                    f"{name}_conv": with_conv(states[at - 1]["conv"], inner[:, at:at + 1], c["conv1d_kernel_size"])}
        return out

    return Built(forward, case.params(dtype))


@builder("xlstm/slstm_layer*")
def slstm_layer(case: Case, dtype: str) -> Built:
    """The whole sequence at once, from nothing; or step by step."""
    c = case.config
    layer = slstm_layer_of(c)

    def joined(state):
        return ops.stack([state[part] for part in ("h", "c", "n", "m") if part in state])

    def forward(x: Tensors, p: Tensors) -> Tensors:
        x = x["x"]
        with with_weights(layer, slstm_weights(p, conv=layer.conv is not None)):
            y, last = layer(x, layer.initial_state(c["batch"], dtype))
            out = {"y": y, "y_parallel": y, "final_state": joined(last)}
            if layer.conv is not None:
                out["final_conv_tail"] = last["conv"]
            if "y_steps" in case.expected:
                out["y_steps"], states = steps(layer, x, layer.initial_state(c["batch"], dtype))
                out["final_state"] = joined(states[-1])
                out["final_conv"] = with_conv(states[-2]["conv"], x[:, -1:], c["conv1d_kernel_size"])
        return {name: out[name] for name in case.expected}

    return Built(forward, case.params(dtype))


def stack_config(c: dict) -> dict:
    """The original's nested configuration of a case's block stack or language model."""
    return {"embedding_dim": c["D"], "num_blocks": c["num_blocks"], "slstm_at": c["slstm_at"], "vocab_size": c.get("vocab_size"),
            "bias": c["bias"], "add_post_blocks_norm": c["add_post_blocks_norm"], "tie_weights": c.get("tie_weights", False),
            "mlstm_block": {"mlstm": {"num_heads": c["num_heads"], "conv1d_kernel_size": c["conv1d_kernel_size"],
                                      "qkv_proj_blocksize": c["qkv_proj_blocksize"], "proj_factor": c["proj_factor"],
                                      "round_proj_up_to_multiple_of": c["round_proj_up_to_multiple_of"]}},
            "slstm_block": {"slstm": {"num_heads": c["slstm_num_heads"], "conv1d_kernel_size": c["slstm_conv"], "function": c["function"]},
                            "feedforward": {"proj_factor": c["ff_proj_factor"], "act_fn": c["ff_act"],
                                            "round_proj_up_to_multiple_of": c["ff_round"]}}}


def parallel_states(model, batch: int, dtype: str):
    """`parallel_state` of every mLSTM block, None for the feed-forward blocks."""
    return [parallel_state(block.layer, batch, dtype) if isinstance(block.layer, MLSTM) else block.initial_state(batch, dtype)
            for block in model.blocks]


@builder("xlstm/block_stack", "xlstm/lm", "xlstm/lm_step")
def block_stack(case: Case, dtype: str) -> Built:
    """Blocks alone or with embedding and head; step by step."""
    c = case.config
    model = XLSTM(model_config(stack_config(c)), key=em.random.key(0))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        x = x["x"] if "x" in x else x["input_ids"]
        with with_weights(model, model_weights(model, p, c["bias"])):
            y, _ = model(x, parallel_states(model, c["batch"], dtype))
            if "logits_steps" not in case.expected:
                return {"y" if "y" in case.expected else "logits": y}
            return {"logits_parallel": y, "logits_steps": steps(model, x, model.initial_state(c["batch"], dtype))[0]}

    return Built(forward, case.params(dtype))


@builder("xlstm/slstm_block")
def slstm_block(case: Case, dtype: str) -> Built:
    """An sLSTM block and its feed-forward block: a stack of one."""
    c = case.config
    config = XLSTMConfig(c["D"], 1, [0], slstm_heads=c["num_heads"], slstm_taps=c["conv1d_kernel_size"] or None, slstm_cell=c["function"],
                         ff_expand=c["ff_proj_factor"], ff_activation=c["ff_act"], ff_multiple_of=c["ff_round"], final_norm=False)
    model = XLSTM(config, key=em.random.key(0))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(model, model_weights(model, {f"blocks.0.{name}": w for name, w in p.items()})):
            return {"y": model(x["x"])[0]}

    return Built(forward, case.params(dtype))


@builder("xlstm/large_model*")
def large_model(case: Case, dtype: str) -> Built:
    """The large model at once, with its last states; or a prompt, then token by token."""
    c = case.config
    model = XLSTMLarge(model_config({"embedding_dim": c["D"], **c}), key=em.random.key(0))

    def states(name: str, state) -> Tensors:
        out = {}
        for i, s in enumerate(state[::2]):                  # every second block is a feed-forward layer
            width = s["memory"].shape[-1] - 1
            out |= {f"{name}.{i}.c": s["memory"][..., :width], f"{name}.{i}.n": s["memory"][..., width], f"{name}.{i}.m": s["m"].reshape((*s["m"].shape, 1))}
        return out

    def forward(x: Tensors, p: Tensors) -> Tensors:
        x = x["input_ids"]
        with with_weights(model, model_weights(model, p, c["use_bias"])):
            empty = model.initial_state(c["batch"], dtype)
            whole, last = model(x, empty)
            if "prompt" not in c:
                return {"logits": whole, **states("state", last)}
            prefill, state = model(x[:, :c["prompt"]], empty)
            found, after = steps(model, x[:, c["prompt"]:], state)
        return {"logits_parallel": whole, "logits_prefill": prefill, "logits_steps": found, **states("prefill_state", state),
                **states("final_state", after[-1])}

    return Built(forward, case.params(dtype))
