"""Sequence mixers on torch: Ember's layers against transformers' plain torch ones, the same weights and inputs on both sides.

A row is a training step (output, gradients of weights and input) or one step of decoding. Target: no slower, a ratio of 1.

    python -m benchmarks.mixers
"""

from __future__ import annotations

import torch
from transformers import (
    DynamicCache, LlamaConfig, Mamba2Config, MambaConfig, Qwen3NextConfig, RecurrentGemmaConfig, RwkvConfig,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml.registry import layers

WIDTH, HEADS, TOKENS = 128, 4, 8


def filled(module: torch.nn.Module) -> torch.nn.Module:
    """With small random weights: the constructors leave some of them unset."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return module


def conv_named(p: dict) -> dict:
    return {n.replace("conv1d.", "conv."): w.squeeze(1) if n.endswith("conv1d.weight") else w for n, w in p.items()}


def mamba():
    c = MambaConfig(hidden_size=WIDTH, state_size=16, expand=2, conv_kernel=4, num_hidden_layers=1)
    return layers.instantiate("mamba", WIDTH), filled(MambaMixer(c, 0)), conv_named, c


def mamba2():
    c = Mamba2Config(hidden_size=WIDTH, state_size=64, expand=2, head_dim=64, num_heads=HEADS, n_groups=1, num_hidden_layers=1, chunk_size=64)
    return layers.instantiate("mamba2", WIDTH), filled(Mamba2Mixer(c, 0)), conv_named, c


def rwkv4():
    c = RwkvConfig(hidden_size=WIDTH, attention_hidden_size=WIDTH, num_hidden_layers=1)
    short = {"time_decay": "decay", "time_first": "bonus", "time_mix_key": "mix_k", "time_mix_value": "mix_v", "time_mix_receptance": "mix_r"}

    def rename(p: dict) -> dict:
        return {short.get(n, n): 1.0 - w.reshape(-1) if "mix" in n else w for n, w in p.items()}

    return layers.instantiate("rwkv4", WIDTH), filled(RwkvSelfAttention(c)), rename, None


def rg_lru():
    c = RecurrentGemmaConfig(hidden_size=WIDTH, lru_width=WIDTH, num_attention_heads=HEADS, conv1d_width=4)
    names = {"linear_x": "x_proj", "linear_y": "y_proj", "linear_out": "out_proj", "conv_1d": "conv", "rg_lru.recurrent_param": "decay",
             "rg_lru.input_gate_weight": "input_gate", "rg_lru.input_gate_bias": "input_bias", "rg_lru.recurrent_gate_weight": "recurrence_gate",
             "rg_lru.recurrent_gate_bias": "recurrence_bias"}

    def rename(p: dict) -> dict:
        return {names.get(n) or f"{names[n.split('.')[0]]}.{n.split('.')[1]}": w.squeeze(1) if n == "conv_1d.weight" else w for n, w in p.items()}

    block = filled(RecurrentGemmaRecurrentBlock(c, 0))

    class Peer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def named_parameters(self, *args, **kw):
            return block.named_parameters(*args, **kw)

        def forward(self, x):
            block.rg_lru.recurrent_states = None
            return block(x, torch.arange(x.shape[1])[None].expand(x.shape[0], -1), None, use_cache=False)

    return layers.instantiate("rg_lru", WIDTH, heads=HEADS), Peer(), rename, None


def gated_delta_net():
    head = WIDTH // HEADS
    c = Qwen3NextConfig(hidden_size=WIDTH, linear_num_value_heads=HEADS, linear_num_key_heads=HEADS, linear_key_head_dim=head,
                        linear_value_head_dim=head, linear_conv_kernel_dim=4, num_hidden_layers=1, layer_types=["linear_attention"])

    def rename(p: dict) -> dict:                           # the original lays out q, k, v, z head by head
        q, k, v, z = p["in_proj_qkvz.weight"].reshape(HEADS, 4, head, WIDTH).unbind(1)
        b, a = p["in_proj_ba.weight"].reshape(HEADS, 2, WIDTH).unbind(1)
        named = {"in_proj.weight": torch.cat([t.reshape(-1, WIDTH) for t in (q, k, v, z)]), "gates.weight": torch.cat([b, a])}
        return named | {n: w for n, w in conv_named(p).items() if not n.startswith("in_proj")}

    ours = layers.instantiate("gated_delta_net", WIDTH, heads=HEADS, key_dim=head, value_dim=head)
    return ours, filled(Qwen3NextGatedDeltaNet(c, 0)), rename, None


def self_attention():
    c = LlamaConfig(hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS // 2, num_hidden_layers=1,
                    attn_implementation="sdpa")
    attention, rotary = filled(LlamaAttention(c, 0)), LlamaRotaryEmbedding(c)

    class Peer(torch.nn.Module):
        def named_parameters(self, *args, **kw):
            return attention.named_parameters(*args, **kw)

        def forward(self, x):
            turn = rotary(x, torch.arange(x.shape[1])[None])
            return attention(x, position_embeddings=turn, attention_mask=None)

    def rename(p: dict) -> dict:
        return {"in_proj.weight": torch.cat([p[f"{n}_proj.weight"] for n in "qkv"]), "out_proj.weight": p["o_proj.weight"]}

    return layers.instantiate("self_attention", WIDTH, heads=HEADS, kv_heads=HEADS // 2, bias=False, rope={}), Peer(), rename, None


def same(ours, peer, rename):
    """Gives Ember's layer the peer's weights."""
    named = rename({n: p.detach().clone() for n, p in peer.named_parameters()})
    ours.update({n: em.from_native(w.contiguous()) for n, w in named.items()})


def output(y):
    return y[0] if isinstance(y, tuple) else y


def training(ours, peer, x):
    """Two functions: output, gradients of all weights and of the input."""
    params, wanted = ours.parameters(), [p for _, p in peer.named_parameters()]

    def loss(params, x):
        with ours.using(params):
            return (ours(x)[0] ** 2).mean()

    gradient = em.value_and_grad(loss, (0, 1))

    def run_ours():
        return gradient(params, em.from_native(x))[0].item()

    def run_peer():
        inner = x.clone().requires_grad_()
        value = (output(peer(inner)) ** 2).mean()
        torch.autograd.grad(value, [inner, *wanted])
        return value.item()

    a, b = run_ours(), run_peer()
    assert abs(a - b) < 1e-4 * abs(b), f"the two sides compute different things: {a}, {b}"
    return run_ours, run_peer


def decoding(ours, peer, x, c):
    """Two functions: TOKENS after a prompt, one by one, with the state that each has."""
    prompt, tokens = x[:, :-TOKENS], [x[:, i - TOKENS] for i in range(TOKENS)]
    _, start = ours(em.from_native(prompt), ours.initial_state(x.shape[0]))
    given = [em.from_native(t.contiguous()) for t in tokens]

    def run_ours():
        state = start
        for t in given:
            y, state = ours.step(t, state)
        return y.numpy()

    cache = DynamicCache(config=c)
    with torch.no_grad():
        peer(prompt, cache_params=cache)

    def run_peer():                                        # its cache runs on: the cost of a token does not depend on it
        with torch.no_grad():
            for t in tokens:
                y = output(peer(t[:, None], cache_params=cache))
        return y[:, 0].numpy()

    assert abs(run_ours() - run_peer()).max() < 1e-4, "the two sides compute different things"
    return run_ours, run_peer


def main():
    rows = []
    torch.manual_seed(0)
    for build in (mamba, mamba2, rwkv4, rg_lru, gated_delta_net, self_attention):
        with em.using("torch"):
            ours, peer, rename, c = build()
            same(ours, peer.eval(), rename)
            for batch, length in ((1, 256), (4, 64)):
                pair = training(ours, peer, torch.randn(batch, length, WIDTH))
                rows.append({"case": f"{build.__name__}, training, batch {batch}, L = {length}", **compare(*pair, rounds=5, warmup=1), "target": 1.0})
            for batch in (1, 8) if c is not None else ():
                pair = decoding(ours, peer, torch.randn(batch, 72, WIDTH), c)
                rows.append({"case": f"{build.__name__}, {TOKENS} tokens, batch {batch}", **compare(*pair, rounds=5, warmup=1), "target": 1.0})
    save("mixers", rows)


if __name__ == "__main__":
    main()
