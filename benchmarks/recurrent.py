"""LSTM and GRU layers, forward and backward: Ember against mlx.nn.LSTM on MLX and against torch's own modules on torch.

The same weights and inputs on both sides; loss and gradients are compared before the clock starts. "compiled" is Ember's
gradient under em.compile, as its trainer runs it; mx.compile makes mlx.nn.LSTM no faster, so that its time is the eager one. Targets: a
fifth of mlx.nn.LSTM's time at L = 2048; at most 1.1 of torch's.

    python -m benchmarks.recurrent
    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0 OPENBLAS_NUM_THREADS=1 python -m benchmarks.recurrent

The MLX wheel for Linux has a reference BLAS; the second line puts OpenBLAS in its place, as Accelerate has on a Mac, and measures the rows
on MLX alone (recurrent-openblas).
"""

from __future__ import annotations

import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
import mlx.nn as mlx_nn
import torch

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml.nn.layers import GRU, LSTM


def ember_side(layer, x, compiled=False):
    """A function that returns the loss and the gradient of x, after all gradients are computed."""
    params = layer.parameters()
    runtime = x.backend.runtime

    def loss(params, x):
        with layer.using(params):
            return (layer(x)[0] ** 2).mean()

    gradient = em.value_and_grad(loss, (0, 1))
    gradient = em.compile(gradient) if compiled else gradient

    def run():
        value, (by_param, by_x) = gradient(params, x)
        runtime.synchronize([g.data for g in (value, by_x, *by_param.values())])
        return value.item(), by_x.data
    return run


def on_mlx(batch: int, length: int, width: int, compiled: bool):
    with em.using("mlx"):
        ours = LSTM(LSTM.Config(width), key=em.random.key(0))
        x = em.random.normal(em.random.key(1), (batch, length, width))
    theirs = mlx_nn.LSTM(width, width)
    theirs.update({"Wx": ours.weight_ih.data, "Wh": ours.weight_hh.data, "bias": ours.bias.data})

    def loss(weights, x):
        theirs.update(weights)
        return (theirs(x)[0] ** 2).mean()

    def run():
        value, (by_param, by_x) = mx.value_and_grad(loss, (0, 1))(theirs.trainable_parameters(), x.data)
        mx.eval(value, by_param, by_x)
        return value.item(), by_x

    first, second = ember_side(ours, x, compiled), run
    (a, ga), (b, gb) = first(), second()
    assert abs(a - b) < 1e-5 * abs(b) and mx.abs(ga - gb).max() < 1e-4 * mx.abs(gb).max(), "the two sides differ"
    return first, second


def on_torch(kind, module, batch: int, length: int, width: int):
    with em.using("torch:cpu"):
        ours = kind(kind.Config(width), key=em.random.key(0))
        x = em.random.normal(em.random.key(1), (batch, length, width))
    theirs = module(width, width, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.weight_ih.data)
        theirs.weight_hh_l0.copy_(ours.weight_hh.data)
        theirs.bias_ih_l0.copy_(ours.bias.data)
        theirs.bias_hh_l0.zero_()
        if kind is GRU:
            theirs.bias_hh_l0[-width:] = ours.bias_inner.data

    def run():
        leaf = x.data.detach().requires_grad_()
        value = (theirs(leaf)[0] ** 2).mean()
        by_x, *_ = torch.autograd.grad(value, [leaf, *theirs.parameters()])
        return value.item(), by_x

    first, second = ember_side(ours, x), run
    (a, ga), (b, gb) = first(), second()
    assert abs(a - b) < 1e-5 * abs(b) and (ga - gb).abs().max() < 1e-4 * gb.abs().max(), "the two sides differ"
    return first, second


def main():
    rows, blas = [], "openblas" in os.environ.get("LD_PRELOAD", "")
    for batch, length, width, rounds in ((1, 2048, 64, 3), (4, 2048, 64, 3), (4, 2048, 128, 1)):
        for compiled in (True, False):
            rows.append({"case": f"mlx.nn.LSTM, batch {batch}, L = {length}, width {width}, {'compiled' if compiled else 'eager'}",
                         **compare(*on_mlx(batch, length, width, compiled), rounds=rounds, warmup=0), "target": 0.2})
    for kind, module in () if blas else ((LSTM, torch.nn.LSTM), (GRU, torch.nn.GRU)):
        for batch, length, width in ((4, 512, 128), (4, 2048, 64), (16, 256, 256)):
            rows.append({"case": f"torch.nn.{module.__name__}, batch {batch}, L = {length}, width {width}",
                         **compare(*on_torch(kind, module, batch, length, width), rounds=15), "target": 1.1})
    save("recurrent-openblas" if blas else "recurrent", rows)


if __name__ == "__main__":
    main()
