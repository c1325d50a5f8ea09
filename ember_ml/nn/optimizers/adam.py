"""Adam and AdamW."""

from __future__ import annotations

from ember_ml.errors import UnsupportedDtype
from ember_ml.nn.optimizers.base import Optimizer, Params
from ember_ml.nn.optimizers.schedules import LearningRate, Schedule
from ember_ml.ops.optimizer import adam_update
from ember_ml.registry.config import Rate, config
from ember_ml.tensor.common import dtypes as dt


@config
class AdamConfig:
    """rate: learning rate or a schedule. betas: decay of the two averages. eps: added to the root of the second."""

    rate: Schedule | LearningRate = 1e-3
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: float = 1e-8


@config
class AdamWConfig(AdamConfig):
    """weight_decay: decoupled decay, applied to parameters of two or more axes (matrices, not biases and norms)."""

    weight_decay: float = 0.01


class Adam(Optimizer):
    """Adam: bias-corrected averages of gradients and their squares (formula: `adam_update`).

    Source: Kingma and Ba 2015, Adam, algorithm 1.
    """

    Config = AdamConfig

    def slots(self, params: Params) -> dict:
        for name, p in params.items():
            if p.dtype.kind == "complex":
                raise UnsupportedDtype(f"adam: expected real parameters, got {name} of {p.dtype}; keep real and imaginary "
                                       "parts as two parameters")
        return {slot: {k: p.zeros_like() for k, p in params.items()} for slot in ("m", "v")}

    def update(self, params, grads, state, donate=False):
        beta1, beta2 = self.config.betas
        rate, done = self.rate(state["step"]), state["step"] + 1
        names = list(params)
        tensors = [tree[name] for tree in (params, grads, state["m"], state["v"]) for name in names]
        new = adam_update(rate, done.astype(dt.float32), *tensors, beta1=beta1, beta2=beta2, eps=self.config.eps,
                          decays=tuple(self.decay(params[name]) for name in names), donate=donate)
        n = len(names)
        after, m, v = (dict(zip(names, new[i * n:(i + 1) * n])) for i in range(3))
        return after, {"step": done, "m": m, "v": v}

    def decay(self, p) -> float:
        """Weight decay of one parameter."""
        return 0.0


class AdamW(Adam):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization."""

    Config = AdamWConfig

    def decay(self, p) -> float:
        return self.config.weight_decay if p.ndim >= 2 else 0.0
