"""The smallest model with all kinds of state: dropout keys, Hyena and its filter, experts that balance themselves."""

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.optimizers import AdamW, AdamWConfig, Schedule

VOCAB, LENGTH, BATCH = 6, 12, 2

#: a ModelConfig as plain values
CONFIG = {
    "vocab_size": VOCAB, "norm": "layer_norm", "head": "tied",
    "blocks": [
        {"d_input": 8, "layer": "hyena", "norm": "layer_norm", "dropout": 0.2,
         "layer_config": {"l_max": LENGTH, "filter": {"width": 8, "depth": 1}}},
        {"d_input": 8, "layer": "moe", "norm": "layer_norm",
         "layer_config": {"num_experts": 4, "k": 2, "expert_config": {"d_inner": 8}, "router_config": {"balance_rate": 0.05}}},
    ],
}
ROUTER = "blocks.1.layer.router"
BIAS = f"{ROUTER}.bias"
LOAD = f"{ROUTER}.load_cv"


def model(seed: int = 0) -> nn.Model:
    """The model on the current engine."""
    return nn.Model.from_config(CONFIG, key=em.random.key(seed))


def optimizer() -> AdamW:
    """AdamW on a schedule, so that the step counter is part of the state.

    eps is large: with a small one Adam moves a parameter whose gradient is rounding error by a whole step.
    """
    return AdamW(AdamWConfig(Schedule(peak=0.1, total=20, warmup=2), eps=0.01, weight_decay=0.1))


def loss(model, tokens):
    """Next-token cross-entropy."""
    return nn.losses.cross_entropy(model(tokens[:, :-1])[0], tokens[:, 1:])


def batch(i: int) -> tuple:
    """Tokens of update i, on the current engine."""
    return (em.random.randint(em.random.fold_in(em.random.key(77), i), (BATCH, LENGTH + 1), 0, VOCAB),)
