"""Twenty SGD steps of transformers' blocks and of Ember's, from the same weights: the same losses."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.optimizers import SGD, SGDConfig
from ember_ml.registry import layers

pytest.importorskip("transformers", reason="the peer whose blocks are followed is not installed")
torch = pytest.importorskip("torch", reason="transformers computes with torch")

D, INNER, E, K, TOKENS, STEPS, RATE = 8, 6, 4, 2, 48, 20, 0.1
GATED = {"d_inner": INNER, "glu": True, "activation": "silu"}


def mixtral():
    from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock
    block = MixtralSparseMoeBlock(MixtralConfig(hidden_size=D, intermediate_size=INNER, num_local_experts=E, num_experts_per_tok=K))
    return block, dict(router_type="softmax", router_config={"normalize": True, "balance_rate": 0.0})


def lfm2():
    from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeConfig, Lfm2MoeSparseMoeBlock
    block = Lfm2MoeSparseMoeBlock(Lfm2MoeConfig(hidden_size=D, moe_intermediate_size=INNER, num_experts=E, num_experts_per_tok=K,
                                                use_expert_bias=True, norm_topk_prob=True, routed_scaling_factor=1.5))
    return block, dict(router_type="sigmoid", router_config={"normalize": True, "eps": 1e-6, "scale": 1.5, "balance_rate": 0.0})


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("peer", [mixtral, lfm2])
def test_twenty_steps_of_sgd(peer, engine):
    generator = torch.Generator().manual_seed(3)
    block, fields = peer()
    block = block.double()
    with torch.no_grad():
        for t in [*block.parameters(), *(b for b in block.buffers() if b.dtype.is_floating_point)]:
            t.copy_(torch.randn(t.shape, generator=generator, dtype=torch.float64) * 0.5)
    x, y = (torch.randn(1, TOKENS, D, generator=generator, dtype=torch.float64) for _ in range(2))
    names = {"gate.weight": "router.weight", "experts.gate_up_proj": "experts.w1", "experts.down_proj": "experts.w2",
             "expert_bias": "router.bias", "gate.e_score_correction_bias": "router.bias", "gate.expert_bias": "router.bias"}
    start = {names[n]: t.detach().numpy().copy() for n, t in block.state_dict().items()}

    theirs, optimizer = [], torch.optim.SGD(block.parameters(), RATE)
    for _ in range(STEPS):
        out = block(x)
        loss = (((out[0] if isinstance(out, tuple) else out) - y) ** 2).mean()
        theirs.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with em.using(engine):
        layer = layers.instantiate("moe", D, E, "mlp", K, expert_config=GATED, key=em.random.key(0), **fields)
        layer.astype("float64")
        layer.update({n: em.tensor(w) for n, w in start.items()})
        given, wanted = em.tensor(x.numpy()), em.tensor(y.numpy())
        params, buffers, sgd, ours = layer.parameters(), layer.buffers(), SGD(SGDConfig(RATE)), []
        state = sgd.init(params)
        run = nn.value_and_grad(layer, lambda m: ((m(given) - wanted) ** 2).mean())
        for _ in range(STEPS):
            out, grads = run(params, buffers, em.random.key(0))
            ours.append(out.loss.item())
            params, state = sgd.update(params, grads, state)
    assert theirs[-1] < 0.9 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
