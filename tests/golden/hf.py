"""Models of transformers: logits, hidden states, what the routers choose, and cached decoding, in every layout of the weights."""

from __future__ import annotations

from safetensors.numpy import load_file

import ember_ml as em
from ember_ml import ops
from ember_ml.interop.asked import Asked
from ember_ml.interop.rules import named
from ember_ml.interop.transformers import FAMILIES, Fields
from ember_ml.nn.models import Model
from ember_ml.nn.moe import SparseMoE
from tests.golden.case import Built, Case, Tensors, builder, tensor, with_weights


#: families whose hidden_states.k is the output of layer k and not its input
LATE = ("mamba", "mamba2", "rwkv")


@builder(*(f"hf/{name}*" for name in FAMILIES), "liquid/lfm2", "liquid/lfm2_moe")
def transformers_model(case: Case, dtype: str) -> Built:
    """One model of a family; its blocks are pairs of a sequence and a channel mixer but for the Mambas, which are one a layer."""
    family = family_of(case)
    layout = FAMILIES[family](Fields(case.config, family))
    model = Model(layout.config, key=em.random.key(0))
    published = case.folder / "weights_checkpoint_layout.safetensors"

    def forward(x: Tensors, p: Tensors) -> Tensors:
        weights = named(model, layout, Asked(case.key, p))
        if published.exists():
            same_weights(weights, named(model, layout, Asked(case.key, {n: tensor(w, dtype) for n, w in load_file(published).items()})))
        with with_weights(model, weights):
            found = outputs(model, x["input_ids"], case, dtype)
        return {name: y for name, y in found.items() if name in case.expected}

    return Built(forward, case.params(dtype))


def same_weights(weights: Tensors, others: Tensors):
    """Raises ValueError unless the published layout holds what transformers' own does, to the bit."""
    for name, w in weights.items():
        w = em.stop_gradient(w)
        if w.shape != others[name].shape or not (w == others[name]).all().item():
            raise ValueError(f"the two layouts of the weights differ in {name}")


def family_of(case: Case) -> str:
    """The longest family that the name of the case begins with: "lfm2_moe" of "lfm2_moe", "mamba2" of "mamba2_B"."""
    return max((name for name in FAMILIES if case.name.startswith(name)), key=len)


def outputs(model: Model, tokens, case: Case, dtype: str) -> Tensors:
    """Everything that the cases ask of a model."""
    found, layers = {}, case.config["num_hidden_layers"]
    size = len(model.blocks) // layers                      # blocks a layer
    before = len(model.blocks) % layers                     # RWKV's norm of the embedding
    routers = {int(name.split(".")[3]): name.partition(".")[2] for name in case.expected if name.startswith("router_logits.")}
    x = model.embedding(tokens) * model.config.embedding_scale
    late = family_of(case) in LATE
    if not late:
        found["hidden_states.0"] = x
    for i, block in enumerate(model.blocks):
        layer, last = divmod(i - before, size)
        if isinstance(block.layer, SparseMoE):
            found |= routing(block.layer.router, block.norm(x), routers[layer])
        x, _ = block(x)
        if i >= before and last == size - 1:
            found[f"hidden_states.{layer + (not late)}"] = x
    found[f"hidden_states.{layers}"] = model.norm(x)
    found["logits"], _ = model(tokens)
    if "prompt" in case.config:
        found["logits_steps"] = decoded(model, tokens, case.config["prompt"], dtype)
    return found


def routing(router, x, place: str) -> Tensors:
    """Raw logits, and the chosen experts and their weights by the number of the expert."""
    rows = ops.reshape(x, (-1, x.shape[-1]))
    chosen = router(rows)
    order = ops.argsort(chosen.ids, axis=-1)
    return {f"router_logits.{place}": router.logits(rows)[0],
            f"router_indices.{place}": ops.take_along_axis(chosen.ids, order, axis=-1),
            f"router_weights.{place}": ops.take_along_axis(chosen.weights, order, axis=-1)}


def decoded(model: Model, tokens, prompt: int, dtype: str):
    """Logits of single steps from position `prompt` on."""
    _, state = model(tokens[:, :prompt], model.initial_state(tokens.shape[0], dtype))
    steps = []
    for t in range(prompt, tokens.shape[1]):
        logits, state = model.step(tokens[:, t], state)
        steps.append(logits)
    return ops.stack(steps, axis=1)
