"""One training step (loss and gradients) of liquid and xLSTM layers on torch: Ember against the ncps and xlstm packages, and against
torch.nn's LSTM and GRU. The same weights, read from the peer's state dict, and the same inputs on both sides; one thread.

    python -m benchmarks.liquid_xlstm [names]
"""

from __future__ import annotations

import sys

import torch

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml.interop import ncps as ncps_reader
from ember_ml.interop import xlstm as xlstm_reader
from ember_ml.nn.layers import GRU, LSTM, LTC, MLSTM, SLSTM, AutoNCP, CfC, CfCConfig, FullyConnected, GRUConfig, LSTMConfig, LTCConfig
from ember_ml.nn.layers import MLSTMConfig, SLSTMConfig, WiredCfC, WiredCfCConfig

BATCH = 16


def ours_of(layer, weights, x):
    """A function that computes loss and gradients of an Ember layer and returns the loss."""
    layer.update(weights)

    def loss(params, x):
        with layer.using(params):
            return (layer(x)[0] ** 2).mean()

    gradient, params, x = em.value_and_grad(loss, (0, 1)), layer.parameters(), em.ops.from_native(x)
    return lambda: gradient(params, x)[0].item()


def theirs_of(module, x, output):
    """The same of a torch module; `output` is what its call gives."""
    x = x.clone().requires_grad_()
    parameters = [p for p in module.parameters() if p.requires_grad]

    def run():
        loss = (output(module(x)) ** 2).mean()
        torch.autograd.grad(loss, [x, *parameters])
        return loss.item()
    return run


def state_of(module):
    return {name: em.ops.from_native(p.detach().clone()) for name, p in module.state_dict().items()}


def liquid(kind: str, length: int, width: int, inputs: int = 8):
    """Pairs for "ltc", "cfc" and "wired_cfc"."""
    from ncps.torch import LTC as TheirLTC
    from ncps.torch import CfC as TheirCfC
    from ncps.wirings import AutoNCP as TheirNCP

    x = torch.randn(BATCH, length, inputs)
    if kind == "ltc":
        module, layer = TheirLTC(inputs, width), LTC(LTCConfig(inputs, FullyConnected(width)))
    elif kind == "cfc":
        module, layer = TheirCfC(inputs, width), CfC(CfCConfig(inputs, width))
    else:
        module = TheirCfC(inputs, TheirNCP(width, 8, 0.5))
        layer = WiredCfC(WiredCfCConfig(inputs, AutoNCP(width, 8, 0.5), wired_gate=False))
    return ours_of(layer, ncps_reader.weights(layer, state_of(module)), x), theirs_of(module, x, lambda out: out[0])


def lstm_family(kind: str, length: int, width: int):
    """Pairs for "lstm" and "gru" against torch.nn."""
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind](width, width, batch_first=True)
    layer = LSTM(LSTMConfig(width)) if kind == "lstm" else GRU(GRUConfig(width))
    p = state_of(module)
    bias = p["bias_ih_l0"] + p["bias_hh_l0"]
    weights = {"weight_ih": p["weight_ih_l0"], "weight_hh": p["weight_hh_l0"], "bias": bias}
    if kind == "gru":
        last = p["bias_hh_l0"][2 * width:]
        weights |= {"bias": bias - em.ops.concat([bias[:2 * width].zeros_like(), last]), "bias_inner": last}
    x = torch.randn(BATCH, length, width)
    return ours_of(layer, weights, x), theirs_of(module, x, lambda out: out[0])


def xlstm(kind: str, length: int, width: int):
    """Pairs for "mlstm" and "slstm" (the package's plain torch backend)."""
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    x = torch.randn(BATCH, length, width)
    if kind == "mlstm":
        module = mLSTMLayer(mLSTMLayerConfig(embedding_dim=width, context_length=length, num_heads=4))
        layer, weights = MLSTM(MLSTMConfig(width)), xlstm_reader.mlstm_weights(state_of(module))
    else:
        module = sLSTMLayer(sLSTMLayerConfig(embedding_dim=width, num_heads=4, backend="vanilla"))
        module.reset_parameters()
        layer, weights = SLSTM(SLSTMConfig(width)), xlstm_reader.slstm_weights(state_of(module))
    return ours_of(layer, weights, x), theirs_of(module, x, lambda y: y)


CASES = {"ltc": (liquid, (64, 32), (128, 64)), "cfc": (liquid, (64, 32), (256, 64)), "wired_cfc": (liquid, (64, 32), (256, 64)),
         "lstm": (lstm_family, (256, 128),), "gru": (lstm_family, (256, 128),), "mlstm": (xlstm, (256, 128), (1024, 128)),
         "slstm": (xlstm, (256, 128),)}
TARGETS = {"lstm": 1.2, "gru": 1.2}


def main(names):
    torch.set_num_threads(1)
    rows = []
    for name in names or CASES:
        make, *sizes = CASES[name]
        for length, width in sizes:
            torch.manual_seed(0)
            with em.using("torch"):
                ours, theirs = make(name, length, width)
                assert abs(ours() - theirs()) < 1e-3 * abs(theirs()), f"{name}: the two sides compute different things"
                rows.append({"case": f"{name}, torch, L = {length}, width {width}, batch {BATCH}", **compare(ours, theirs, 5, 1),
                             "target": TARGETS.get(name, 1.0)})
    save("liquid_xlstm" if not names else "liquid_xlstm_some", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
