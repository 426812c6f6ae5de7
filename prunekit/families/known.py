"""Which model types the tests hold exact, and which are refused with what reason."""

from __future__ import annotations

EXACT: tuple[str, ...] = (
    "aria", "aya_vision", "blip-2", "chameleon", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni",
    "deepseek_ocr2", "deepseek_vl", "deepseek_vl_hybrid", "dots3_note", "emu3", "ernie4_5_vl_moe", "exaone4_5",
    "fast_vlm", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "glm46v", "glm4v", "glm4v_moe",
    "glm5_next", "glm_ocr", "glmga", "got_ocr2", "granite4_vision", "granite_docling", "hunyuan_vl",
    "hyperclovax_vision_v2", "idefics2", "idefics3", "inkling2", "inkling_mm_model", "instructblip",
    "instructblipvideo", "internvl", "janus", "kimi_k25", "kosmos-2", "kosmos-2.5", "lfm2_vl", "lfm3_vl",
    "lighton_ocr", "llama4", "llava", "llava_next", "llava_next_video", "llava_onevision", "minicpm_ocr",
    "minicpmv4_6", "minicpmv4_7", "minimax_m3_vl", "mistral3", "mistral_large4", "molmo2", "muse_glimmer",
    "muse_spark", "nemotron_h_omni", "ovis2", "paddleocr_vl", "paligemma", "perception_lm", "pp_chart2table",
    "qianfan_ocr", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe",
    "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe", "qwen4_exp", "shieldgemma2", "smolvlm", "step3p7",
    "unlimited_ocr", "video_llama_3", "video_llava", "vipllava",
)  # fmt: skip
"""Model types whose removal the tests hold equal to masking (``tests/test_families.py``)."""

_ENCODER = "its visual tokens stand in an encoder's sequence, not in a decoder's"
_CROSS = "its visual tokens reach the decoder by cross-attention alone"

REFUSED: dict[str, str] = {
    "blip": _CROSS,
    "diffusion_gemma": "it writes text by block diffusion, not token by token",
    "evolla": "its input is a protein, and reaches the decoder by cross-attention",
    "florence2": _ENCODER,
    "git": "its picture is a prefix without placeholders in input_ids",
    "idefics": _CROSS,
    "inkling2_loop": "some of its layers run several times in a forward pass, each time over the whole sequence",
    "mistral4": "it is a language model without pictures",
    "mllama": _CROSS,
    "pi0": "it makes actions by flow matching, not text",
    "pix2struct": _CROSS,
    "pp_formulanet": _CROSS,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "vision-encoder-decoder": _CROSS,
}
"""Model types that are refused at ``apply``, with the reason."""
