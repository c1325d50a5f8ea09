"""Adapters travel: what `peft` trained on a llama runs here on the converted model, and what was trained here runs there."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ConfigError, WeightsError
from ember_ml.interop import convert
from ember_ml.interop.peft_names import peft_names
from ember_ml.nn.adapters import LoRAConfig, add_lora, fuse, load_peft, save_peft
from tests.nn._help import close, get
from tests.nn.test_lora import stirred

torch = pytest.importorskip("torch", reason="the peer runs on torch")
transformers = pytest.importorskip("transformers", reason="needs the peer; pip install 'ember-ml[peers]'")
peft = pytest.importorskip("peft", reason="needs the peer; pip install 'ember-ml[peers]'")

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder of a tiny llama with grouped heads."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                                      num_key_value_heads=1, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def theirs(folder):
    return transformers.LlamaForCausalLM.from_pretrained(folder)


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize("fields", [dict(r=3, lora_alpha=6, target_modules="all-linear"),
                                    dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True,
                                         rank_pattern={"down_proj": 4})])
def test_what_peft_wrote_is_read(llama, fields, tmp_path, backend):
    torch.manual_seed(1)
    adapted = peft.get_peft_model(theirs(llama), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **fields))
    adapted.save_pretrained(tmp_path)
    model = convert.read(llama)[0].to(backend)
    before = get(model(em.tensor(TOKENS))[0])
    names = load_peft(model, tmp_path, peft_names(model, llama))
    assert len(names) == 2 * (7 if fields["target_modules"] == "all-linear" else 3)
    want = logits(adapted)
    close(model(em.tensor(TOKENS))[0], want, 1e-4)
    assert np.abs(want - before).max() > 1e-2
    fuse(model, em.tensor(TOKENS))
    close(model(em.tensor(TOKENS))[0], logits(adapted.merge_and_unload()), 1e-4)


def test_peft_reads_what_is_written_here(llama, tmp_path, backend):
    model = convert.read(llama)[0].to(backend)
    add_lora(model, LoRAConfig(rank=3, alpha=5.0, targets=["*.q_proj", "*.k_proj", "*.out_proj", "*.glu.up"]), em.random.key(1))
    save_peft(stirred(model), tmp_path, peft_names(model, llama), base=str(llama))
    adapted = peft.PeftModel.from_pretrained(theirs(llama), tmp_path)
    assert adapted.peft_config["default"].r == 3
    close(model(em.tensor(TOKENS))[0], logits(adapted), 1e-4)


def test_names_belong_to_a_family(llama, tmp_path):
    model = convert.read(llama)[0]
    names = peft_names(model, llama)
    assert names["blocks.2.layer.in_proj.v_proj"] == "model.layers.1.self_attn.v_proj" and names["head"] == "lm_head"
    with pytest.raises(ConfigError, match="model_type .*llama.*; received 'lama'"):
        peft_names(model, {"model_type": "lama"})
    add_lora(model, LoRAConfig(rank=1))
    with pytest.raises(WeightsError, match="in_proj.q_proj has no name in the other model"):
        save_peft(model, tmp_path, {"head": "lm_head"})
    assert not list(tmp_path.iterdir())
