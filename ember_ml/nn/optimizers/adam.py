"""Adam and AdamW."""

from __future__ import annotations

import math

from ember_ml.nn.optimizers.base import Optimizer, Params
from ember_ml.nn.optimizers.schedules import Schedule
from ember_ml.ops import expm1
from ember_ml.ops.optimizer import adam_update
from ember_ml.registry.config import config
from ember_ml.tensor.common import dtypes as dt


@config
class AdamConfig:
    """rate: learning rate or a schedule. betas: decay of the two averages. eps: added to the root of the second."""

    rate: Schedule | float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
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
        return {slot: {k: p.zeros_like() for k, p in params.items()} for slot in ("m", "v")}

    def update(self, params, grads, state):
        beta1, beta2 = self.config.betas
        rate, done = self.rate(state["step"]), state["step"] + 1
        t = done.astype(dt.float32)
        # 1 - beta^t without the cancellation that would cost 1 - 0.999 five digits in float32
        scale1, scale2 = (-1.0 / expm1(t * math.log(max(beta, 1e-300))) for beta in (beta1, beta2))
        size, new = rate * scale1, {}
        for name, p in params.items():
            decay = self.decay(p)
            new[name] = adam_update(p, grads[name], state["m"][name], state["v"][name], size, scale2,
                                    rate * decay if decay else None, beta1=beta1, beta2=beta2, eps=self.config.eps)
        return ({k: n[0] for k, n in new.items()},
                {"step": done, "m": {k: n[1] for k, n in new.items()}, "v": {k: n[2] for k, n in new.items()}})

    def decay(self, p) -> float:
        """Weight decay of one parameter."""
        return 0.0


class AdamW(Adam):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization."""

    Config = AdamWConfig

    def decay(self, p) -> float:
        return self.config.weight_decay if p.ndim >= 2 else 0.0
