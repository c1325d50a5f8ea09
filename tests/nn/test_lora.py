"""LoRA: what it computes, what is trained, fusing with its check, and the files of `peft`."""

import json

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn, weights
from ember_ml.errors import ConfigError, WeightsError
from ember_ml.nn.adapters import LoRAConfig, adapters, add_lora, fuse, load_peft, maps, save_peft
from ember_ml.nn.adapters.fuse import divergence
from ember_ml.nn.optimizers import AdamW, AdamWConfig
from ember_ml.nn.pipeline.training import RunFolder, Trainer, TrainingConfig
from ember_ml.registry import layers
from tests.nn._help import close, get, numbers, put
from tests.nn._mixers import CASES, build, inputs

CONFIG = {"vocab_size": 7, "head": "dense", "norm": "rms_norm", "defaults": {"d_input": 8, "norm": "rms_norm"},
          "blocks": [{"layer": "self_attention", "self_attention_config": {"heads": 2, "kv_heads": 1, "rope": {}}}, {"layer": "mamba", "mamba_config": {"d_state": 2}},
                     {"layer": "gated_mlp", "gated_mlp_config": {"d_inner": 6}}]}
TOKENS = np.random.default_rng(0).integers(0, 7, (2, 9)).astype(np.int32)


def model(**change):
    return nn.Model.from_config({**CONFIG, **change}, key=em.random.key(0))


def stirred(m, scale=0.3):
    """The same model with matrices B that are not zero."""
    for i, lora in enumerate(adapters(m).values()):
        for j, pair in enumerate(lora.pairs.values()):
            pair.B = put(numbers(10 * i + j, *pair.B.shape) * scale, str(pair.B.dtype))
    return m


def tensors(m):
    return {name: t.tolist() for name, t in m.tensors().items()}


def test_the_model_is_as_before_and_only_the_pairs_are_trained(backend):
    m = model()
    before = get(m(em.tensor(TOKENS))[0])
    names = add_lora(m, LoRAConfig(rank=3), em.random.key(1))
    assert names[:4] == [f"blocks.0.layer.in_proj.{p}_proj" for p in "qkv"] + ["blocks.0.layer.out_proj"] and "head" not in names
    assert set(m.parameters(trainable=True)) == {f"{n.removesuffix(f'.{p}') if p != 'all' else n}.adapter.pairs.{p}.{x}" for n in names
                                                 for p in (n.rsplit(".", 1)[1] if n.endswith(("q_proj", "k_proj", "v_proj")) else "all",) for x in "AB"}
    close(m(em.tensor(TOKENS))[0], before, 1e-6)
    A = m.blocks[2].layer.down.adapter.pairs["all"].A
    assert A.shape == (3, 6) and 0.2 < np.abs(get(A)).max() <= 6 ** -0.5


@pytest.mark.parametrize("root", [False, True])
def test_what_is_added(root, backend):
    """y = x W^T + b, rows of one part plus scale x A^T B, the others as they are: in NumPy."""
    mixer = layers.instantiate("self_attention", 4, heads=2, key=em.random.key(0))
    add_lora(mixer, LoRAConfig(rank=2, alpha=3.0, targets=["in_proj.v_proj"], rank_stabilized=root), em.random.key(1))
    dense, x = stirred(mixer).in_proj, numbers(0, 5, 4)
    pair, scale = dense.adapter.pairs["v_proj"], 3.0 / (2 ** 0.5 if root else 2)
    want = x @ get(dense.weight).T + get(dense.bias)
    want[:, 8:] += scale * x @ get(pair.A).T @ get(pair.B)
    close(dense(put(x)), want, 1e-5)
    close(dense.adapter.matrix(), np.concatenate([np.zeros((8, 4)), scale * get(pair.B).T @ get(pair.A)]), 1e-6)


@pytest.mark.parametrize("name, fields", CASES)
def test_every_map_that_is_offered_has_an_effect(name, fields):
    """A layer that reads a Dense's weights and never calls it must say so (`Dense.called`): else its LoRA would be trained for nothing."""
    mixer = build(name, fields, "numpy", "float64")
    if not maps(mixer):
        return
    with em.using("numpy"):
        add_lora(mixer, LoRAConfig(rank=2, targets=["*"]), em.random.key(1))
        params = stirred(mixer).parameters(trainable=True)
        grads = em.grad(lambda p: _of(mixer, p, inputs(fields, "numpy", "float64")))(params)
    assert params and not [name for name, g in grads.items() if np.abs(get(g)).max() == 0.0]


def _of(mixer, params, x):
    with mixer.using(params):
        return (mixer(x)[0] ** 2).sum()


def test_dropout_acts_on_the_pairs_in_training_alone(backend):
    m = model()
    add_lora(m, LoRAConfig(dropout=0.5), em.random.key(1))
    tokens, still = em.tensor(TOKENS), get(stirred(m)(em.tensor(TOKENS))[0])
    close(m(tokens)[0], still, 1e-6)
    with nn.training(em.random.key(2)):
        assert np.abs(get(m(tokens)[0]) - still).max() > 1e-3


@pytest.mark.parametrize("targets, message", [(["blocks.0.layer.in_porj"], "did you mean blocks.0.layer.in_proj"), (["heads"], "did you mean head"),
                                              ([], "at least one target")])
def test_a_target_that_is_none_changes_nothing(targets, message):
    m = model()
    before = list(m.parameters(trainable=True))
    with pytest.raises(ConfigError, match=message):
        add_lora(m, LoRAConfig(targets=["blocks", *targets] if targets else []))
    assert list(m.parameters(trainable=True)) == before and not adapters(m)
    add_lora(m, LoRAConfig())
    with pytest.raises(ConfigError, match="has it already, at blocks.0.layer.in_proj; fuse it first"):
        add_lora(m, LoRAConfig())


def test_the_fused_model_computes_the_same_without_adapters(backend):
    m = model()
    names, tokens = list(m.parameters()), em.tensor(TOKENS)
    add_lora(m, LoRAConfig(rank=2), em.random.key(1))
    adapted = get(stirred(m)(tokens)[0])
    with pytest.raises(WeightsError, match="blocks.0.layer.in_proj has an adapter, .*fuse.*save_peft"):
        m.save("never.safetensors")
    found = fuse(m, tokens)
    assert abs(found.changed) < 1e-6 < 1e-3 < found.without
    assert not adapters(m) and list(m.parameters(trainable=True)) == names
    close(m(tokens)[0], adapted, 1e-5)


def test_a_change_that_rounding_would_lose_is_not_fused(backend):
    """In bfloat16 a change of a thousandth of the weights is lost; the divergence tells, here of a change that many small ones add up to."""
    m = model().astype("bfloat16")
    add_lora(m, LoRAConfig(rank=8, alpha=8.0), em.random.key(1))
    tokens = em.tensor(TOKENS)
    m = stirred(m, 0.3)
    before = tensors(m)
    with pytest.raises(WeightsError, match=r"(?s)at most 1.0e-09.*bfloat16 weights round the change away.*force=True"):
        fuse(m, tokens, bound=1e-9)
    assert tensors(m) == before and adapters(m)
    assert fuse(m, tokens, bound=1e-9, force=True).changed > 1e-9 and not adapters(m)
    with pytest.raises(WeightsError, match="got one without"):
        fuse(m, tokens)


def test_the_divergence_is_that_of_the_definition():
    p, q = numbers(0, 3, 5), numbers(1, 3, 5)
    P, Q = (np.exp(t) / np.exp(t).sum(-1, keepdims=True) for t in (p, q))
    with em.using("numpy"):
        got = divergence(put(p, "float64"), put(q, "float64"), True)
    assert got == pytest.approx((P * np.log(P / Q)).sum(-1).mean(), rel=1e-12)


def trainer(m, steps, folder=None):
    loss = nn.losses.cross_entropy
    return Trainer(m, lambda m, x: loss(m(x[:, :-1])[0], x[:, 1:]), AdamW(AdamWConfig(rate=3e-2)), lambda i: (np.roll(TOKENS, i, 1),),
                   TrainingConfig(steps=steps, log_every=4, eval_every=4, checkpoint_every=4, compile=False), folder=folder)


def adapted_model():
    m = model(blocks=[CONFIG["blocks"][0], CONFIG["blocks"][2]])
    add_lora(m, LoRAConfig(rank=4, dropout=0.1), em.random.key(1))
    return m


def test_training_moves_the_pairs_alone_and_resumes_exactly(backend, tmp_path):
    m = adapted_model()
    before, names = {n: t.numpy() for n, t in m.tensors().items()}, set(m.parameters(trainable=True))
    whole = trainer(m, 8, RunFolder(tmp_path / "a"))
    row = whole.train()
    assert row["loss"] < whole.folder.rows()[0]["loss"] and set(whole.state["params"]) == names == set(whole.state["optimizer"]["m"])
    assert {n for n, t in m.tensors().items() if not np.array_equal(t.numpy(), before[n])} == names
    trainer(adapted_model(), 4, RunFolder(tmp_path / "b")).train()
    second = adapted_model()
    rest = trainer(second, 8, RunFolder(tmp_path / "b", resume=True))
    rest.resume()
    rest.train()
    assert tensors(second) == tensors(m)


def test_peft_files_hold_the_adapter_of_any_model(tmp_path, backend):
    m = model()
    add_lora(m, LoRAConfig(rank=2, alpha=5.0, targets=["*.q_proj", "blocks.2"]), em.random.key(1))
    save_peft(stirred(m), tmp_path / "adapter", base="base.safetensors")
    held = weights.load(tmp_path / "adapter/adapter_model.safetensors")[0]
    assert held["base_model.model.blocks.0.layer.in_proj.q_proj.lora_A.weight"].shape == (2, 8)
    assert held["base_model.model.blocks.2.layer.down.lora_B.weight"].shape == (8, 2)
    values = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (values["r"], values["lora_alpha"], values["peft_type"], values["base_model_name_or_path"]) == (2, 5.0, "LORA", "base.safetensors")
    again = model()
    assert sorted(load_peft(again, tmp_path / "adapter")) == values["target_modules"]
    assert tensors(again) == tensors(m)
    assert list(again.parameters(trainable=True)) == list(m.parameters(trainable=True))


@pytest.fixture
def adapter(tmp_path):
    m = model()
    add_lora(m, LoRAConfig(rank=2, targets=["*.down"]), em.random.key(1))
    save_peft(stirred(m), tmp_path)
    return tmp_path


KEY = "base_model.model.blocks.2.layer.down.lora_A.weight"


@pytest.mark.parametrize("change, error, message", [
    ({"peft_type": "IA3"}, ConfigError, "expected peft_type 'LORA', received 'IA3'"), ({"use_dora": True}, ConfigError, "use_dora to be False"),
    ({"bias": "all"}, ConfigError, "bias to be 'none'"), ({"r": "many"}, ConfigError, "adapter_config.json.*rank"),
    ({"init_lora_weights": "pissa"}, ConfigError, "init_lora_weights"), ({"rank_pattern": {"down": -1}}, ConfigError, "rank_pattern"),
    ({"r": 3}, WeightsError, r"lora_A of shape \(3, 6\)")])
def test_a_configuration_that_means_something_else_is_refused(adapter, change, error, message):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(adapter, error, message)


@pytest.mark.parametrize("change, message", [
    ({KEY: None}, r"lora_A of shape \(2, 6\) and lora_B of shape \(8, 2\), got"), ({KEY: (2, 5)}, r"got \{.*\(2, 5\)"),
    ({"base_model.model.blocks.9.layer.down.lora_A.weight": (2, 6)}, "is no LoRA matrix of a linear map of this model; its maps are blocks.0"),
    ({"model.embed_tokens.weight": (2, 6)}, "'model.embed_tokens.weight' is no LoRA matrix")])
def test_tensors_that_do_not_fit_are_refused(adapter, change, message):
    path = adapter / "adapter_model.safetensors"
    held = weights.load(path)[0] | {name: None if shape is None else em.ones(shape) for name, shape in change.items()}
    weights.save(path, {name: t for name, t in held.items() if t is not None})
    refused(adapter, WeightsError, message)


def test_a_pickle_is_not_read(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, WeightsError, "adapter_model.bin may run code when it is read")
    (adapter / "adapter_config.json").unlink()
    refused(adapter, WeightsError, "there is no adapter_config.json")


def refused(folder, error, message):
    m = model()
    before = tensors(m)
    with pytest.raises(error, match=message):
        load_peft(m, folder)
    assert tensors(m) == before and not adapters(m) and len(m.parameters(trainable=True)) == len(m.parameters())
