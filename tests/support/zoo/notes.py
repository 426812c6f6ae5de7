"""What is odd about each family for an engine that removes tokens between decoder layers (transformers 5.23).

Found by hooks on the decoder layers of the tiny models, and by reading their code. "*" holds for all families.
"""

from __future__ import annotations

_DEEPSTACK = (
    "the text model adds visual features to the hidden states after layers 0.. (visual_pos_masks [B,S], dense) while "
    "the layers run: {}"
)
_MLA = "latent attention: the cache holds (latent [B,1,S,rank], rotary key [B,1,S,r]) and expands them at each step"
_DELTA = (
    "linear layers get a 2-D int mask [B,S] (None without padding and at decode), full layers a 4-D one or None; "
    "cache LinearAttentionLayer (conv and recurrent state, no keys) beside DynamicLayer; gated norm amplifies rounding"
)
_SLIDING = (
    "sliding and full layers alternate; cache DynamicSlidingWindowLayer keeps window-1 keys, decode masks of sliding "
    "layers are window wide; full layers get None, sliding ones a mask even without padding"
)
_ODD_POSITIONS = "generate numbers positions by place ([1,S] arange), not by the mask, with left padding as well"
_NO_POSITION_IDS = "layers get no position_ids, neither in forward nor in generate"

NOTES: dict[str, str] = {
    "*": (
        "layers: model.language_model.layers for most; get_decoder() names their parent, but for llama4, "
        "nemotron_h_omni, blip-2 and the kosmos it is one or two modules above. All decoders go through "
        "ALL_ATTENTION_FUNCTIONS. Forward gives rotary embeddings and position_ids with a batch axis of 1 ([1,S,d]), "
        "generate with B; M-RoPE ones always have B. attention_mask is None without padding (sdpa; eager has a float "
        "mask), and bool [B,1,S,S] under sdpa, float min under eager. use_cache, past_key_values, logits_to_keep may "
        "ride along as keywords."
    ),
    "aya_vision": _SLIDING + "; attention and MLP are parallel in a layer",
    "cohere2_vision": _SLIDING + "; attention and MLP are parallel in a layer",
    "blip-2": "layers at language_model.model.decoder.layers (OPT, learned positions, no rotary); position_ids [B,S]; "
    "generate is an own method that calls language_model.generate with inputs_embeds and input_ids",
    "instructblip": "layers at language_model.model.layers; generate calls language_model.generate with inputs_embeds "
    "and input_ids; qformer_input_ids has a row for each picture",
    "instructblipvideo": "as instructblip; the only visual token is video_token_index, frames × queries of them",
    "chameleon": "layers at model.layers, output (hidden,) as a tuple; pictures become codes of the vocabulary, whose "
    "embeddings replace the placeholders; logits of picture codes are set to the dtype's min",
    "chameleon_swin": "the 30B kind: norms after attention and MLP",
    "cohere_compass": _DEEPSTACK.format("touches hidden states before layers 1 and 2 here")
    + ". "
    + _SLIDING
    + "; rotary parameters by layer type; "
    + _NO_POSITION_IDS,
    "cosmos3_edge": _NO_POSITION_IDS + "; M-RoPE",
    "cosmos3_omni": _DEEPSTACK.format("touches hidden states before layers 1 and 2 here"),
    "deepseek_ocr2": "the tiny model replaces vision_tower.query_768_resolution (144 queries) by 7; pictures with "
    "local views have more tokens; num_local_patches is a list",
    "deepseek_vl_hybrid": "two towers: pixel_values and high_res_pixel_values",
    "dots3_note": _MLA + ", DynamicIndexedLayer adds indexer_keys [B,S,d]; sliding layers have other ranks "
    "(per_layer_config); the indexed layers mask by top-k only if _attn_implementation is in (eager, sdpa), else pass "
    "indices to the attention function; a mask is always there",
    "emu3": "layers at model.text_model.layers; each row of picture codes ends in a newline that is a placeholder too",
    "ernie4_5_vl_moe": "layers get moe_mm_token_type_ids [B,S], which picks the experts; also given to generate, where "
    "it is cut to the new token at decode; position_ids [3,B,S]",
    "exaone4_5": _SLIDING
    + "; sliding_window is set on the attention modules of full layers as well; "
    + _ODD_POSITIONS,
    "fuyu": "transformers 5.17 calls the pixels image_patches; persimmon decoder, half rotary; newline tokens between "
    "rows are text",
    "gemma3": _SLIDING + "; pictures see both ways (token_type_ids), so all layers have masks in a prefill; at decode "
    "none of it",
    "shieldgemma2": "Gemma3ForConditionalGeneration under a config of its own; see gemma3",
    "gemma3n": "hidden states [4,B,S,D] (AltUp); rotary embeddings and per-layer inputs [B,S,d] are positional; "
    "shared_kv_states, the last 2 layers take keys from layers 2 and 3 (DummyLayer in the cache); rotary by layer "
    "type; timm tower (a tiny one here); " + _SLIDING,
    "gemma4": "per-layer input [B,S,d] is positional; shared_kv_states, the last 2 layers take keys from layers 2 and "
    "3 (DummyLayer in the cache); in generate the model slices hidden states, rotary embeddings, masks and per-layer "
    "inputs to the last row before the first sharing layer, while position_ids stay dense; rotary by layer type; "
    + _SLIDING,
    "gemma4_moe": "no per-layer inputs: None is passed in their place; full layers have another head size, fewer key "
    "heads, and keys that serve as values; pictures see both ways in sliding layers only (full ones get None); experts",
    "gemma4_unified": "no vision tower: patches are embedded at once; pictures see both ways, all layers have masks in "
    "a prefill; " + _SLIDING,
    "glm4v": "videos are written with image tokens: only mm_token_type_ids tells 2 from 1; "
    "layers get no position_ids in forward",
    "glm46v": "see glm4v",
    "glmga": "Glm46VForConditionalGeneration under a config of its own; see glm4v",
    "glm_ocr": "see glm4v",
    "glm4v_moe": "position_ids [3,B,S] reach the layers; see glm4v",
    "glm5_next": "hidden states [B,S,streams,D]; masks are bool [B,S] everywhere, no 4-D mask: the indexed layers "
    "build one from the index, which needs it for causality; layer output (hidden, topk or None), prev_topk_indices "
    "holds key indices; indexer_keys [B,S,2d+1] with a validity channel; the indexer counts query places as "
    "get_seq_length() - q against key places in the cache, so a layer that reports dense lengths sees too much in "
    "steps of several tokens; no rotary; " + _MLA + "; videos are image tokens between video marks",
    "got_ocr2": "supports no SDPA as a whole; built as {vision_config: eager, text_config: attn}",
    "pp_chart2table": "GotOcr2ForConditionalGeneration under a config of its own; see got_ocr2",
    "granite4_vision": _DEEPSTACK.format("before layers 0 to 4 here (deepstack_layer_map, spatial_target_layers)")
    + "; forward makes no cache by itself",
    "granite_docling": _DEEPSTACK.format("touches hidden states before layers 1 and 2") + "; layers at "
    "model.text_model.layers; pixel_attention_mask [B,tiles] bool",
    "hunyuan_vl": "a newline for each row and begin and end of a picture are placeholders with learned features; "
    "4-axis M-RoPE; " + _NO_POSITION_IDS,
    "hyperclovax_vision_v2": _ODD_POSITIONS,
    "idefics2": "layers at model.text_model.layers; Mistral's sliding_window makes all cache layers "
    "DynamicSlidingWindowLayer (4096 wide here); pictures in a box [B,most,3,H,W]",
    "idefics2_sliding": "all layers sliding, window 8, as the released model has it (4096): no full layer in the cache",
    "idefics3": "layers at model.text_model.layers",
    "smolvlm": "layers at model.text_model.layers",
    "inkling_mm_model": "no rotary, no position_ids: a relative bias from row indices (get_query_offset and "
    "get_mask_sizes of the cache layer, read before update), given to the attention function as position_bias; "
    "convolutions on keys, values, attention and MLP outputs with conv_mask int [B,S] (None without padding and at "
    "decode); cache LinearAttentionAnd{Full,SlidingWindow}AttentionLayer, four conv states each; "
    "log_scaling_n_floor (None here) scales queries by row index",
    "inkling2": "eager only; as inkling, and: block_states [B,S,blocks,D] is positional and the text model itself "
    "appends each block boundary's *dense-length* hidden states to it between layers, and mixes it in after the last; "
    "position_ids used for the query scale; attention sinks per token; l2 clips; from 5.24 on layers get "
    "relative_distance [Q,K] (full and sliding ones another), convolutions of full layers have weights by token, and "
    "what joins the blocks calls the attention interface as well",
    "inkling2_loop": "from 5.24 on; some layers run several times in a forward pass, each time with the dense sequence "
    "and a cache layer of its own (cache_offset)",
    "kimi_k25": _MLA + "; videos of more than one frame fail in transformers 5.23 (split sizes count frames, features "
    "do not), so the video here has one",
    "kosmos-2": "layers at text_model.model.layers; (hidden, mask, None) are positional and the mask is float in sdpa "
    "too, always there; visual places only from image_embeds_position_mask; sinusoidal positions counted from "
    "input_ids; generate is an own method calling text_model.generate; in 5.17 sdpa is wrong (eager only)",
    "kosmos-2.5": "layers at text_model.model.layers; visual places only from image_embeds_position_mask; the first "
    "two numbers of each flattened patch are its row and column; no rotary, no position_ids",
    "lfm2_vl": "conv layers get a 2-D int mask (None without padding) and rotary embeddings they do not use; cache "
    "LinearAttentionLayer beside DynamicLayer",
    "lfm3_vl": "conv layers get a 2-D mask and no rotary embeddings; cache LinearAttentionLayer beside DynamicLayer",
    "llama4": "layers at language_model.model.layers, get_decoder() is language_model; rotary is one complex tensor "
    "[1 or B,S,d/2]; chunked layers use DynamicSlidingWindowLayer with chunk-1 keys; full layers have no rotary and "
    "scale queries by row index + get_seq_length(layer_idx), which shows beyond floor_scale (8192) tokens only; in "
    "5.24.0 the conditional model reads image_outputs of its language model's output, which has none: AttributeError "
    "in every forward pass",
    "llama4_tempered": "llama4 with floor_scale 8: the scale of queries in full layers follows row indices, which a "
    "compact sequence changes; be exact (correct the queries) or refuse",
    "llava_pixtral": "Pixtral tower; Mistral decoder, all cache layers DynamicSlidingWindowLayer (4096 wide)",
    "mistral3": "Mistral decoder, all cache layers DynamicSlidingWindowLayer (4096 wide)",
    "llava_onevision": "a sample with several pictures does not tile them (batch_num_images)",
    "minicpm_ocr": "position_ids [B,S] reach the layers; all pictures' patches in one strip; " + _DELTA,
    "minicpmv4_6": "see minicpm_ocr",
    "minicpmv4_7": "M-RoPE that reads image_start_id, slice marks and newline ids from input_ids; " + _DELTA,
    "minimax_m3_vl": "MiniMaxM3VLSparseCacheLayer adds idx_keys; the indexer compares key *indices* with position_ids: "
    "wrong for left padding in generate in the dense model already once there are several blocks (one of 128 here); "
    "blocks count only if _attn_implementation is in (eager, sdpa); mask None without padding",
    "mistral_large4": _MLA + " (rank 0 rotary in layers without positions), DynamicIndexedLayer adds indexer_keys; "
    "layer output (hidden, topk indices int32 [B,S,K]), handed on as prev_topk_indices: indices are *key places*, one "
    "row for each query; shared_kv_states keyword; top-k masks only if _attn_implementation is in (eager, sdpa), else "
    "indices go to the attention function; position_ids scale queries; a mask is always there",
    "mistral_large4_shared": "layers 4 and 5 take keys from layers 2 and 3 (DummyLayer, or indexer keys alone), layers "
    "3 and 5 take the top-k of the layer before",
    "molmo2": "features are *added* to the placeholders' embeddings; pictures see both ways (mm_token_type_ids)",
    "muse_glimmer": "some full layers get no rotary embeddings (None), see layer_rope_theta; " + _SLIDING,
    "muse_spark": "some full layers get no rotary embeddings (None), see layer_rope_theta; experts; " + _SLIDING,
    "nemotron_h_omni": "layers at language_model.model.layers, get_decoder() is language_model; each layer is one "
    "mixer (Mamba 2, attention, MLP or experts), no rotary at all; Mamba layers get a 2-D mask, MLP layers none and "
    "DummyLayer in the cache; image_grid_hw",
    "ovis2": "marks 110 and 111 carry learned visual embeddings but are not placeholders",
    "paddleocr_vl": "pixel_values are patches [n,3,p,p]",
    "paligemma": "bidirectional prompt: needs token_type_ids of zeros (its processor gives them). Without them and "
    "without padding mask is None and eager sees everything while SDPA is causal. position_ids start at 1",
    "paligemma2": "eager only (soft-capped attention); all layers have masks in a prefill; " + _SLIDING,
    "perception_lm": "timm tower; pixel_values [n,tiles,3,H,W]; the CLS token is dropped after the tower",
    "fast_vlm": "timm tower (a tiny one here)",
    "qwen2_vl": "layers get no position_ids in forward, text positions [B,S] in generate",
    "qwen2_5_vl": "see qwen2_vl; windows in the tower",
    "qwen2_5_omni_thinker": "see qwen2_vl; videos need video_second_per_grid; takes no mm_token_type_ids",
    "qwen3_vl": _DEEPSTACK.format("touches hidden states before layers 1 and 2 here"),
    "qwen3_vl_moe": _DEEPSTACK.format("touches hidden states before layers 1 and 2 here"),
    "qwen3_omni_moe_thinker": _DEEPSTACK.format("touches hidden states before layers 1 and 2 here")
    + "; position_ids are float32 in generate; takes no mm_token_type_ids",
    "qwen3_5": _DELTA,
    "qwen3_5_moe": _DELTA,
    "qwen4_exp": "hidden states [B,S,streams*D]; conv_mask [B,S] beside a 4-D mask that is always there; ple_input_ids "
    "[B,S]: n-gram embeddings hash each token with the *rows before it*, plus a convolution; the first indexed cache "
    "layer stores indexer_position_ids [3,B,S] of the whole history, so at decode rotary embeddings cover all S+1 "
    "places and the indexer picks from them by key place; eos_token_id must be set (3 here); budget covers all here",
    "step3p7": _SLIDING + "; local views add tokens before the whole view's",
    "unlimited_ocr": "UnlimitedOcrDynamicReferenceSlidingWindowLayer: prefill_keys are never evicted, the window holds "
    "decoded tokens only (4 here); a mask is always there; no grouped queries (eager fails with them)",
    "video_llama_3": "image_merge_sizes beside the grids",
    "video_llava": "transformers 5.17 calls the pictures pixel_values_images; video frames keep their CLS token, "
    "pictures do not",
    "llava_next_video": "videos are pooled 2 × 2, without newlines",
}
