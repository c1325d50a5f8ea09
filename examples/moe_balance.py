"""What balancing does to a mixture of experts: the load evens out, and the task's loss does not suffer.

Tokens of eight kinds, some twice as frequent as others, each with a linear map of its own; eight experts, two per token. The same training
without balancing, with the Switch loss, and with the selection bias that needs no loss.
"""

import numpy as np

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.optimizers import Adam, AdamConfig

KINDS, WIDTH, TOKENS, STEPS = 8, 12, 256, 400
RNG = np.random.default_rng(0)
CENTRES, MAPS = 2.0 * RNG.normal(size=(KINDS, WIDTH)), RNG.normal(size=(KINDS, WIDTH, WIDTH)) / WIDTH ** 0.5
SHARE = 0.9 ** np.arange(KINDS)


def batch(step: int):
    """Tokens (T, WIDTH) and what each kind's map makes of them."""
    rng = np.random.default_rng([1, step])
    kind = rng.choice(KINDS, TOKENS, p=SHARE / SHARE.sum())
    x = CENTRES[kind] + 0.5 * rng.normal(size=(TOKENS, WIDTH))
    return x.astype(np.float32), np.einsum("td,tdo->to", x, MAPS[kind]).astype(np.float32)


def train(**router):
    """(task loss, coefficient of variation of the load, dead experts) over the last 50 updates."""
    layer = nn.SparseMoE(WIDTH, KINDS, "mlp", 2, expert_config={"d_inner": 8}, router_config=router, key=em.random.key(0))
    optimizer = Adam(AdamConfig(3e-3))
    params, buffers = layer.parameters(), layer.buffers()
    state, rows = optimizer.init(params), []
    run = nn.value_and_grad(layer, lambda m, x, y: ((m(x) - y) ** 2).mean())
    for step in range(STEPS):
        out, grads = run(params, buffers, em.random.key(step), *map(em.tensor, batch(step)))
        params, state = optimizer.update(params, grads, state)
        buffers = out.buffers
        rows.append([out.metrics[name].item() for name in ("loss", "router.load_cv", "router.dead")])
    return np.mean(rows[-50:], axis=0)


with em.using("numpy"):
    print(f"{'balancing':<28}{'task loss':>10}{'load CV':>10}{'dead':>8}")
    for name, router in {"none": {"balance_rate": 0.0}, "Switch loss, 0.1": {"balance_rate": 0.0, "aux_loss": 0.1},
                         "selection bias, 0.003": {"balance_rate": 3e-3}}.items():
        loss, cv, dead = train(**router)
        print(f"{name:<28}{loss:>10.4f}{cv:>10.3f}{dead:>8.0%}")
