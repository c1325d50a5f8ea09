"""Options beyond the golden cases: models that transformers itself builds at random and saves, in float64, against their converted twins."""

import warnings

import numpy as np
import pytest

import ember_ml as em
from ember_ml.interop.convert import read

SIZES = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2)
ATTENTION = dict(**SIZES, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
MAMBA2 = dict(**SIZES, num_heads=4, head_dim=8, state_size=4, chunk_size=8)
FALCON = dict(**ATTENTION, mamba_d_ssm=16, mamba_n_heads=4, mamba_d_head=4, mamba_d_state=4, mamba_chunk_size=8)
XLSTM = dict(hidden_size=16, vocab_size=32, num_hidden_layers=2, num_heads=2, chunk_size=8, ffn_round_up_to_multiple_of=8,
             autocast_kernel_dtype="float32", mode="inference")
CASES = [
    ("llama", dict(**ATTENTION, rope_parameters=LLAMA3, head_dim=6, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ("llama", dict(**ATTENTION, hidden_act="gelu_pytorch_tanh", rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 100.0})),
    ("mixtral", dict(**ATTENTION, num_local_experts=5, num_experts_per_tok=3, sliding_window=5)),
    ("qwen3_moe", dict(**ATTENTION, head_dim=8, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=2,
                       norm_topk_prob=False, attention_bias=True)),
    ("mamba", dict(**SIZES, state_size=3, expand=3, conv_kernel=3, use_bias=True, use_conv_bias=False, tie_word_embeddings=False)),
    ("mamba2", dict(**MAMBA2, n_groups=1, use_bias=True, time_step_limit=[0.02, 0.4], tie_word_embeddings=True)),
    ("jamba", dict(**ATTENTION, num_experts=3, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=0, expert_layer_period=1,
                   expert_layer_offset=0, mamba_d_state=4, mamba_dt_rank=3, mamba_proj_bias=True, mamba_conv_bias=False, use_mamba_kernels=False)),
    ("falcon_h1", dict(**FALCON, mamba_n_groups=2, mamba_rms_norm=True, mamba_norm_before_gate=True, ssm_in_multiplier=1.5,
                       tie_word_embeddings=True, embedding_multiplier=2.0, lm_head_multiplier=0.25)),
    ("falcon_h1", dict(**FALCON, mamba_n_groups=1, mamba_rms_norm=True, mamba_norm_before_gate=False, attention_bias=True, mlp_bias=True,
                       mamba_proj_bias=True, projectors_bias=True, mlp_multipliers=[0.5, 2.0], key_multiplier=0.5)),
    ("recurrent_gemma", dict(**{**ATTENTION, "num_hidden_layers": 4}, lru_width=24, attention_window_size=6, conv1d_width=3, head_dim=4,
                             block_types=["recurrent", "attention"], logits_soft_cap=5.0)),
    ("rwkv", dict(**SIZES, attention_hidden_size=24, intermediate_size=40)),
    ("xlstm", dict(**XLSTM, use_bias=True, qk_dim_factor=1.0, output_logit_soft_cap=3.0)),
    ("lfm2", dict(**ATTENTION, block_auto_adjust_ff_dim=True, block_multiple_of=10, block_ffn_dim_multiplier=1.3, conv_bias=True,
                  conv_L_cache=4, layer_types=["full_attention", "conv"])),
    ("lfm2_moe", dict(**ATTENTION, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=3, num_dense_layers=1, norm_topk_prob=False,
                      use_expert_bias=False, routed_scaling_factor=2.5, layer_types=["conv", "full_attention"])),
]


@pytest.mark.parametrize("family, options", CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_random_model_and_its_converted_twin(family, options, tmp_path):
    torch = pytest.importorskip("torch", reason="runs the originals")
    transformers = pytest.importorskip("transformers", reason="compares with transformers itself, a peer")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.CONFIG_MAPPING[family](**options, pad_token_id=0)
        config._attn_implementation = config._experts_implementation = "eager"     # the others have no float64
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(torch.randn_like(p) * 0.2)
        model.save_pretrained(tmp_path)
        model = model.double()
        tokens = torch.randint(1, 32, (2, 13))
        with torch.no_grad():
            want = model(tokens, use_cache=False).logits.double().numpy()
    ours = read(tmp_path)[0].astype("float64")
    got = ours(em.tensor(tokens.numpy().astype(np.int32), device="numpy"))[0].numpy()
    # Most originals compute norms, rotations or gates in float32, whatever the dtype of their weights.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
