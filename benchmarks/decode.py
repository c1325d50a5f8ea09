"""Decoding: tokens a second of Ember's `step` on torch against transformers' own cached `generate`, for each architecture both have.

The same weights on both sides (transformers' random model, saved and converted), greedy, and the tokens are compared. Target: ratio of
times at most 1. (transformers' RWKV decodes batches wrongly, it mixes up the token shift of the rows: there the tokens differ.)

    python -m benchmarks.decode [family ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "2")
warnings.simplefilter("ignore")

import numpy as np
import torch
import transformers

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml.interop.convert import read

PROMPT, NEW = 32, 32
SIZES = dict(vocab_size=512, hidden_size=128, num_hidden_layers=4)
ATTENTION = dict(**SIZES, intermediate_size=344, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
PLAIN = {k: v for k, v in ATTENTION.items() if k != "head_dim"}
FAMILIES = {
    "llama": ATTENTION, "mixtral": dict(**ATTENTION, num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": dict(**ATTENTION, moe_intermediate_size=96, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True),
    "mamba": dict(**SIZES, state_size=16), "mamba2": dict(**SIZES, num_heads=4, head_dim=64, state_size=64, n_groups=1, chunk_size=32),
    "jamba": dict(**PLAIN, attn_layer_period=2, attn_layer_offset=1, num_experts=4, mamba_dt_rank=8, use_mamba_kernels=False),
    "falcon_h1": dict(**ATTENTION, mamba_d_ssm=128, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=32, mamba_chunk_size=32),
    "recurrent_gemma": dict(**{**PLAIN, "num_hidden_layers": 6}, lru_width=128, attention_window_size=64),
    "rwkv": dict(**SIZES, attention_hidden_size=128, intermediate_size=512),
    "xlstm": dict(hidden_size=128, vocab_size=512, num_hidden_layers=4, num_heads=4, chunk_size=32, autocast_kernel_dtype="float32", mode="inference"),
    "lfm2": dict(**PLAIN, layer_types=["conv", "full_attention"] * 2),
    "lfm2_moe": dict(**PLAIN, moe_intermediate_size=96, num_experts=8, num_experts_per_tok=2, num_dense_layers=1,
                     layer_types=["conv", "full_attention"] * 2),
}


def pair(family: str):
    """(transformers' model, Ember's) with the same random weights."""
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](**FAMILIES[family], pad_token_id=0, eos_token_id=None, bos_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, read(folder)[0].to("torch:cpu")


def measure(family: str, batch: int, rounds: int = 9) -> dict:
    """One row: seconds for NEW tokens after PROMPT, and how many of the tokens agree."""
    theirs, ours = pair(family)
    tokens = torch.randint(1, SIZES["vocab_size"], (batch, PROMPT))
    prompt = em.tensor(tokens.numpy().astype(np.int32), device="torch:cpu")

    def run_theirs():
        with torch.no_grad():
            return theirs.generate(tokens, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=True)[:, PROMPT:].numpy()

    def run_ours():
        return np.stack([t.numpy() for t in ours.generate(prompt, NEW)], axis=1)

    same = float((run_ours()[:, :8] == run_theirs()[:, :8]).mean())
    row = compare(run_ours, run_theirs, rounds=rounds, warmup=1)
    return {"case": f"{family}, batch {batch}", **row, "target": 1.0, "ours tokens/s": batch * NEW / row["ours_s"],
            "peer tokens/s": batch * NEW / row["peer_s"], "first 8 tokens equal": same}


def main(families=None):
    rows = []
    for family in families or FAMILIES:
        for batch in (1, 8):
            rows.append(measure(family, batch))
            sys.stderr.write(f"{rows[-1]['case']}: {rows[-1]['ratio']:.2f}, equal {rows[-1]['first 8 tokens equal']:.2f}\n")
    if families is None:
        save("decode", rows)


if __name__ == "__main__":
    main(sys.argv[1:] or None)
