"""Mamba's layer, forward and backward: Ember's selective scan against mlx-lm's loop over tokens, on MLX.

The same weights and inputs on both sides. Targets at L = 1024, width 256: at most half the time and half the memory.

    python -m benchmarks.mamba
"""

from __future__ import annotations

import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
import mlx.nn as mlx_nn
from mlx_lm.models import mamba as mlx_mamba

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml.nn.layers import Mamba, MambaConfig

WIDTH = 256


def peak(run) -> int:
    """Bytes that a call takes beyond what was there before."""
    run()
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    run()
    return mx.get_peak_memory() - before


def pair(length: int, batch: int):
    """Two functions of no arguments that compute loss and gradients, and return the loss."""
    with em.using("mlx"):
        ours = Mamba(MambaConfig(WIDTH), key=em.random.key(0))
        x = em.random.normal(em.random.key(1), (batch, length, WIDTH))
    args = mlx_mamba.ModelArgs(model_type="mamba", vocab_size=8, hidden_size=WIDTH, intermediate_size=2 * WIDTH, state_size=16,
                               num_hidden_layers=1, conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=16)
    theirs = mlx_mamba.MambaBlock(args)
    weights = {n.replace("conv.", "conv1d."): p.data for n, p in ours.parameters().items()}
    weights["conv1d.weight"] = weights["conv1d.weight"][..., None]
    theirs.load_weights(list(weights.items()))
    mx.eval(theirs.parameters(), x.data)

    def ember_loss(params, x):
        with ours.using(params):
            return (ours(x)[0] ** 2).mean()

    gradient, params = em.value_and_grad(ember_loss, (0, 1)), ours.parameters()

    def run_ours():
        loss, (by_param, by_x) = gradient(params, x)
        mx.eval([g.data for g in (loss, by_x, *by_param.values())])
        return loss.item()

    def mlx_loss(x):
        y = theirs(x, None)
        return ((y[0] if isinstance(y, tuple) else y) ** 2).mean()

    def of_both(weights, x):
        theirs.update(weights)
        return mlx_loss(x)

    def run_theirs():
        loss, grads = mx.value_and_grad(of_both, (0, 1))(theirs.trainable_parameters(), x.data)
        mx.eval(loss, grads)
        return loss.item()

    assert abs(run_ours() - run_theirs()) < 1e-4 * abs(run_theirs()), "the two sides compute different things"
    return run_ours, run_theirs


def main():
    rows = []
    for length, batch in ((256, 1), (512, 1), (1024, 1), (1024, 4)):
        ours, theirs = pair(length, batch)
        row = {"case": f"mlx, L = {length}, batch {batch}, width {WIDTH}", **compare(ours, theirs, rounds=5, warmup=1)}
        a, b = peak(ours), peak(theirs)
        rows.append(row | {"target": 0.5, "ours_MB": a / 1e6, "peer_MB": b / 1e6, "memory ratio": a / b})
    save("mamba", rows)


if __name__ == "__main__":
    main()
