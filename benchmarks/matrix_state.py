"""Recurrences with a matrix state, forward and backward, on torch: Ember against what others run there without kernels.

Mamba-2: the mixer of transformers with its own weights on both sides; chunks of 256 steps are its default, 64 is what is fastest
for it here.
mLSTM: the chunkwise cell of xlstm, chunks of 64 as it ships. Both peers keep everything for the gradient; Ember
computes segments again and holds one at a time. Target: no slower.

    python -m benchmarks.matrix_state
"""

from __future__ import annotations

import torch
from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer
from xlstm.blocks.mlstm.backends import chunkwise_simple

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml import ops

WIDTH, HEADS = 256, 4
LENGTHS = ((1024, 1), (2048, 1), (1024, 4))


def agree(ours, theirs, what: str):
    """Loss and gradients of both sides are the same numbers, so that the same thing is timed."""
    for a, b in zip(ours, theirs, strict=True):
        error = float((a.reshape(b.shape) - b).abs().max() / b.abs().max().clamp_min(1e-6))
        if error > 1e-3:
            raise AssertionError(f"{what}: the two sides differ by {error:.1e}")


def gradients(fn, inputs):
    """A function of no arguments: the mean square of `fn(*torch tensors)` and its gradients, by torch's autograd."""
    def run():
        leaves = [x.detach().requires_grad_() for x in inputs]
        loss = (fn(*leaves) ** 2).mean()
        return loss, *torch.autograd.grad(loss, leaves)
    return run


def ember_gradients(fn, inputs):
    """The same by Ember's `value_and_grad`, for `fn(*EmberTensors)`."""
    given = [em.tensor(x) for x in inputs]
    gradient = em.value_and_grad(lambda *args: (fn(*args) ** 2).mean(), tuple(range(len(given))))

    def run():
        loss, grads = gradient(*given)
        return [t.data for t in (loss, *grads)]
    return run


def mamba2(length: int, batch: int, chunk: int):
    """Mamba-2's mixer: width 256, expanded to 8 heads of 64, states of 64, one group."""
    config = Mamba2Config(hidden_size=WIDTH, num_heads=8, head_dim=64, state_size=64, n_groups=1, chunk_size=chunk, num_hidden_layers=1)
    mixer = Mamba2Mixer(config, 0)
    names, values = zip(*((n, p.detach()) for n, p in mixer.named_parameters()))
    inner, states, heads = mixer.intermediate_size, mixer.ssm_state_size, mixer.num_heads

    def theirs(x, *weights):
        return torch.func.functional_call(mixer, dict(zip(names, weights)), (x,))

    def ours(x, *weights):
        p = dict(zip(names, weights))
        gate, mixed, dt = ops.split(ops.linear(x, p["in_proj.weight"]), (inner, inner + 2 * states, heads), axis=-1)
        conv = ops.short_conv(ops.swap_axes(mixed), ops.squeeze(p["conv1d.weight"], 1), p["conv1d.bias"])
        x, B, C = ops.split(ops.swap_axes(ops.silu(conv)), (inner, states, states), axis=-1)
        x, dt = ops.reshape(x, (batch, length, heads, -1)), ops.expand_dims(ops.softplus(dt + p["dt_bias"]), -1)
        decay = dt * ops.expand_dims(-ops.exp(p["A_log"]), -1)
        y, _ = ops.linear_attention(ops.expand_dims(C, 2), ops.expand_dims(B, 2), x * dt, decay)
        y = ops.reshape(y + x * ops.expand_dims(p["D"], -1), (batch, length, inner)) * ops.silu(gate)
        return ops.linear(ops.rms_norm(y, p["norm.weight"], eps=config.layer_norm_epsilon), p["out_proj.weight"])

    inputs = [torch.randn(batch, length, WIDTH), *values]
    return ember_gradients(ours, inputs), gradients(theirs, inputs)


def mlstm(length: int, batch: int):
    """The cell alone: 4 heads of 64."""
    width = WIDTH // HEADS
    q, k, v = (torch.randn(batch, length, HEADS, width) for _ in range(3))
    i, f = torch.randn(batch, length, HEADS), 3.0 + torch.randn(batch, length, HEADS)

    def theirs(*args):
        return chunkwise_simple(*(x.transpose(1, 2).contiguous() for x in args), chunk_size=64).transpose(1, 2)

    def ours(q, k, v, i, f):
        return ops.mlstm(q * width ** -0.5, k, v, i, f)[0]

    return ember_gradients(ours, [q, k, v, i, f]), gradients(theirs, [q, k, v, i, f])


def main():
    torch.manual_seed(0)
    rows = []
    with em.using("torch:cpu"):
        for length, batch in LENGTHS:
            pairs = {f"Mamba-2 mixer, transformers, chunk {c}": mamba2(length, batch, c) for c in (256, 64)}
            pairs["mLSTM cell, xlstm"] = mlstm(length, batch)
            for name, (ours, theirs) in pairs.items():
                agree(ours(), theirs(), name)
                rows.append({"case": f"{name}, L = {length}, batch {batch}", **compare(ours, theirs, rounds=9, warmup=2), "target": 1.0})
    save("matrix_state", rows)


if __name__ == "__main__":
    main()
