"""LLaVA around any causal language model of transformers: tiny, random, from the default config of its model type.

``python tests/support/backbones.py [names]`` prints a line for each model type: exact, refused, or why transformers
itself cannot run it inside LLaVA.
"""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections import Counter
from typing import Any

import torch
import transformers
from transformers import AutoModel, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import prunekit
from prunekit.families import make_family
from reference import generate, has_recurrent_layers, hidden_keys, prompt_logits, step_logits
from zoo.base import BOS, CLIP, IMAGE, PAD, VOCAB, WORDS, Batch, draw_weights, pad_rows

NAMES: tuple[str, ...] = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
TOKENS = 16  # of a picture of 16 x 16 in patches of 4

SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_per_layer_input)?", VOCAB),
    (r"(hidden_size|d_model|n_embd|dim|word_embed_proj_dim|embedding_size|d_embed)", 64),
    (r"(num_attention_heads|n_heads?|num_heads|decoder_attention_heads|encoder_attention_heads)", 4),
    (r"(num_key_value_heads|num_kv_heads|multi_query_group_num|kv_n_heads)", 2),
    (r"(head_dim|attention_head_dim|kv_channels|d_kv|v_head_dim|qk_nope_head_dim|global_head_dim|swa_head_dim)", 16),
    (r"qk_rope_head_dim", 8),
    (r"(qk_head_dim)", 24),
    (r"(intermediate_size|n_inner|ffn_dim|ffn_hidden_size|(decoder|encoder)_ffn_dim|d_ff|inner_dim)", 96),
    (r"(\w*_intermediate_size|expert_ffn_hidden_size)", 32),
    (r"zero_expert_num", 2),
    (r"(num_experts|n_routed_experts|num_local_experts|moe_num_experts|num_experts_total)", 4),
    (r"(num_experts_per_tok|num_experts_per_token|moe_k|moe_topk|top_k_experts|moe_top_k)", 2),
    (r"(n_group|topk_group|num_expert_group)", 1),
    (r"(q_lora_rank|kv_lora_rank|o_lora_rank)", 16),
    (r"index_n_heads|index_num_heads", 4),
    (r"index_head_dim", 16),
    (r"(mamba_d_state|ssm_state_size|state_size|mamba_d_conv_state)", 8),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"(mamba_d_head|mamba_head_dim|mamba_headdim)", 16),
    (r"mamba_d_ssm", 128),
    (r"mamba_dt_rank", 4),
    (r"(mamba_n_groups|mamba_ngroups|n_groups|mamba_chunk_size|chunk_size)", 1),
    (r"linear_num_(key|value)_heads", 4),
    (r"linear_(key|value)_head_dim", 16),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length)", 512),
    (r"(lru_width)", 64),
    (r"hidden_size_per_layer_input", 8),
    (r"(sliding_window|sliding_window_size|attention_window_size)", 12),
    (r"attention_chunk_size", 20),  # the last chunk begins among the tokens of every row: else padding sees nothing
    (r"(linear_num_heads|mem_len)", 4),
    (r"(linear_head_dim|dim_head)", 16),
    (r"rotary_dim", 8),
    (r"floor_scale", 8),
)
"""Generic small sizes: the first pattern that a whole option's name matches, where its default is larger."""

DEPTHS: tuple[str, ...] = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2]},
    "cohere_compass_text": {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"sliding_window": 512, "n_recurrent_layers": 2, "n_input_layers": 1, "n_output_layers": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "gemma3n_text": {"num_kv_shared_layers": 2, "num_hidden_layers": 8, "layer_types": _SLIDING * 2},
    "gemma4_text": {"hidden_size_per_layer_input": 0},  # else its forward wants input_ids, which LLaVA does not pass on
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention", "mamba"]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "phi4_multimodal": {  # towers of its own, which LLaVA does not use
        "vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "audio_config": {
            "hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
            "ext_pw_out_channel": 32, "nemo_conv_channels": 32, "depthwise_separable_out_channel": 32,
        },
    },
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 8]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}  # fmt: skip
"""What a model type needs beside the generic sizes, so that its options fit each other."""


def small_options(name: str) -> dict[str, Any]:
    """The options that make the default config of a model type small."""
    default = vars(CONFIG_MAPPING[name]())
    options: dict[str, Any] = {}
    for option, value in default.items():
        if value is None and option in ("head_dim", "num_key_value_heads"):
            options[option] = {"head_dim": 16, "num_key_value_heads": 2}[option]
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, option)), value)
            options |= {option: size} if size < value else {}
    if "kv_lora_rank" in default:  # latent keys and values are expanded for every head
        options["num_key_value_heads"] = 4
    if "qk_rope_head_dim" in default:  # the rotary part of a head is what the rotary embedding is made for
        options["head_dim"] = options["qk_rope_head_dim"]
    return options | {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": None} | SPECIAL.get(name, {})


def kinds(config: Any) -> set[Any]:
    """The kinds of layers that a config has."""
    per_layer = (getattr(config, name, None) for name in ("layer_types", "layers_block_type", "mlp_layer_types"))
    return {kind for kinds in per_layer if kinds for kind in kinds}


@functools.cache
def text_config(name: str) -> Any:
    """A small config of a model type, deep enough to have every kind of layer that the default one has."""
    default, options = CONFIG_MAPPING[name](), small_options(name)
    depth = next((option for option in DEPTHS if option in vars(default)), None)
    if depth is None or depth in options:
        return CONFIG_MAPPING[name](**options)
    for layers in (4, 5, 6, 8, 10, 12):
        config = CONFIG_MAPPING[name](**options, **{depth: layers})
        if kinds(config) >= kinds(default):
            break
    return config


def build(name: str, attn: str = "sdpa") -> LlavaForConditionalGeneration:
    """A tiny random LLaVA around a model type, fp32, in eval mode; its weights do not depend on ``attn``."""
    vision = CLIPVisionConfig(**{k: v for k, v in CLIP.items() if k != "model_type"})
    config = LlavaConfig(
        vision_config=vision, text_config=text_config(name), image_token_id=IMAGE,
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attn)
    draw_weights(model, 0)
    for module in model.modules():  # Nemotron-H clamps its time steps in a prefill, and not at decode
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id, model.generation_config.bos_token_id = PAD, BOS
    return model.float().eval()


def make_batch(padding: str) -> Batch:
    """Two samples of text, a picture, text; ``padding`` "none" gives them one length, "left" and "right" two."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for before, after in ((3, 9), (3, 9)) if padding == "none" else ((2, 5), (4, 9)):
        words = torch.randint(*WORDS, (before + after,), generator=generator).tolist()
        rows.append([BOS, *words[:before], *[IMAGE] * TOKENS, *words[before:]])
    ids, mask = pad_rows(rows, padding)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    return Batch(inputs, ids == IMAGE)


TOLERANCE, NEW = 1e-4, 3
PADDINGS = ("left", "none", "right")


@functools.cache
def supports(name: str) -> tuple[str, ...]:
    """The attention implementations that a model type has: "sdpa", "eager", or both."""
    return ("sdpa", "eager") if AutoModel._model_mapping[type(text_config(name))]._supports_sdpa else ("eager",)


@functools.cache
def cannot_run(name: str) -> str:
    """Why transformers itself cannot run a model type inside LLaVA, "" if it can."""
    try:
        model = build(name, supports(name)[0])
        with torch.no_grad():
            logits = model(**make_batch("none").inputs).logits
    except Exception as error:  # whatever it is: it comes before prunekit
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "" if logits.isfinite().all() else "its logits are not finite"


@functools.cache
def cannot_generate(name: str) -> str:
    """Why transformers itself cannot generate with a model type inside LLaVA, "" if it can."""
    try:
        generate(build(name, supports(name)[0]), make_batch("none").inputs, NEW)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def difference(name: str, attn: str, padding: str) -> dict[str, float]:
    """Largest differences of a pruned model's logits to those of the masked one: of the prompt, of decode steps (where
    the dense model can decode); and how far hiding the tokens moves the prompt's.

    Raises:
        PrunekitError: where prunekit refuses the model type.
    """
    model, batch = build(name, attn), make_batch(padding)
    schedule = prunekit.create("schedule", "progressive", layers=[1, 2])
    steps = None
    with torch.no_grad(), prunekit.Pruner("random", "single", schedule, keep_ratio=0.4)(model) as trace:
        prompt = model(**batch.inputs).logits
        hidden = hidden_keys(batch, trace.cuts)
        if not cannot_generate(name):
            steps = generate(model, batch.inputs, NEW)
    expected = prompt_logits(model, batch, hidden)
    with torch.no_grad():
        dense = model(**batch.inputs).logits
    text = batch.mask & ~batch.visual
    figures = {
        "prompt": float((prompt - expected)[text].abs().max()),
        "moved": float((dense - expected)[text].abs().max()),
    }
    if steps is not None and (padding != "right" or not has_recurrent_layers(make_family(model))):
        figures["decode"] = float((steps - step_logits(model, batch, hidden, NEW)).abs().max())
    return figures


def verdict(name: str) -> str:
    """One line on a model type: exact with the worst difference, refused, wrong, or why transformers cannot run it."""
    if reason := cannot_run(name):
        return f"not in LLaVA  {reason}"
    worst: dict[str, float] = {}
    for attn in supports(name):
        for padding in PADDINGS:
            try:
                figures = difference(name, attn, padding)
            except prunekit.PrunekitError as error:
                return f"refused       {error}"
            except Exception as error:
                return f"CRASH         {attn} {padding} {type(error).__name__}: {' '.join(str(error).split())}"
            for key, value in figures.items():
                worst[key] = (min if key == "moved" else max)(worst.get(key, value), value)
    fails = worst["moved"] <= 1e-3 or worst["prompt"] >= TOLERANCE or worst.get("decode", 0.0) >= TOLERANCE
    return ("WRONG         " if fails else "exact         ") + ", ".join(f"{k} {v:.0e}" for k, v in worst.items())


def main() -> None:
    """Check the model types named, or all, and count the verdicts."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for name in sys.argv[1:] or NAMES:
        line = verdict(name)
        counts[line[:14].strip()] += 1
        print(f"{name:26s} {line[:190]}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))


if __name__ == "__main__":
    main()
