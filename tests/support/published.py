"""Processors with the image settings of published checkpoints, and models of their geometry with tiny weights.

No hub is needed: sizes, tiles, pixel budgets and pooling are those of the checkpoints' own files, the widths are the
zoo's, and the tokenizer is trained here with the family's special tokens. Counts of visual tokens are the real ones.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig

from films import write_film
from zoo.base import FAMILIES, construct_default, draw_weights

TEXTS = (
    "What is written on the sign? Answer the question using a single word or phrase.",
    "How many people are in the picture, and which of them is on the left?",
    "A chat between a curious user and an assistant. USER: ASSISTANT: User: Assistant:",
)
NEXT_PINS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINS = [[384 * rows, 384 * columns] for rows, columns in itertools.product(range(1, 7), repeat=2)]
QWEN_CHAT = "<|im_start|>user\n{}{question}<|im_end|>\n<|im_start|>assistant\n"
EVERY_CELL = {f"<row_{row}_col_{column}>": "" for row, column in itertools.product(range(1, 7), repeat=2)}

Tokens = transformers.PreTrainedTokenizerFast
Ids = Callable[[str], int]


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint of which a processor and a tiny model are made.

    Attributes:
        family: the zoo's entry that gives the widths.
        processor: makes the processor of a tokenizer.
        config: what differs from the zoo's config, by token ids.
        chat: a prompt, ``{media}`` where pictures stand and ``{question}``.
        image, video: what stands for a picture and for a video in a prompt.
        special: further special tokens; a value other than "" is the tokenizer's attribute that names the token.
        needs: modules without which transformers' processor cannot be made.
    """

    family: str
    processor: Callable[[Tokens], Any]
    config: Callable[[Ids], dict[str, Any]]
    chat: str
    image: str
    video: str = ""
    special: Mapping[str, str] = field(default_factory=dict)
    bos: str = ""
    needs: tuple[str, ...] = ()


def _llava(tokens: Tokens) -> Any:
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_center_crop=True
    )
    return transformers.LlavaProcessor(
        images, tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _llava_next(tokens: Tokens) -> Any:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=NEXT_PINS
    )
    return transformers.LlavaNextProcessor(
        images, tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _llava_onevision(tokens: Tokens) -> Any:
    size = {"height": 384, "width": 384}
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=ONEVISION_PINS), tokens,
        transformers.LlavaOnevisionVideoProcessor(size=size), num_image_tokens=729,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip


def _qwen2(kind: str) -> Callable[[Tokens], Any]:
    def make(tokens: Tokens) -> Any:
        patches: dict[str, Any] = dict(patch_size=14, merge_size=2, temporal_patch_size=2)
        budget = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
        images = transformers.Qwen2VLImageProcessor(size=budget, **patches)
        videos = transformers.Qwen2VLVideoProcessor(size=budget, **patches)  # its file says nothing else of videos
        return getattr(transformers, kind)(images, tokens, videos)

    return make


def _qwen3(tokens: Tokens) -> Any:
    patches: dict[str, Any] = dict(patch_size=16, merge_size=2, temporal_patch_size=2)
    images = transformers.Qwen2VLImageProcessor(size={"shortest_edge": 65536, "longest_edge": 16777216}, **patches)
    videos = transformers.Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}, **patches)
    return transformers.Qwen3VLProcessor(images, tokens, videos)


def _internvl(tokens: Tokens) -> Any:
    size = {"height": 448, "width": 448}
    images = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=12)
    videos = transformers.InternVLVideoProcessor(size=size)
    return transformers.InternVLProcessor(images, tokens, videos, image_seq_length=256)


def _idefics3(longest: int, tile: int, length: int) -> Callable[[Tokens], Any]:
    def make(tokens: Tokens) -> Any:
        images = transformers.Idefics3ImageProcessor(
            size={"longest_edge": longest}, max_image_size={"longest_edge": tile}
        )
        return transformers.Idefics3Processor(images, tokens, image_seq_len=length)

    return make


def _smolvlm2(tokens: Tokens) -> Any:
    sizes: dict[str, Any] = dict(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    images, videos = transformers.SmolVLMImageProcessor(**sizes), transformers.SmolVLMVideoProcessor(**sizes)
    return transformers.SmolVLMProcessor(images, tokens, videos, image_seq_len=64)


def _gemma3(tokens: Tokens) -> Any:
    images = transformers.Gemma3ImageProcessor(size={"height": 896, "width": 896})
    return transformers.Gemma3Processor(images, tokens, image_seq_length=256)


def _pixtral(tokens: Tokens) -> Any:
    images = transformers.PixtralImageProcessor(size={"longest_edge": 1024}, patch_size={"height": 16, "width": 16})
    return transformers.PixtralProcessor(images, tokens, patch_size=16)


def _paligemma(tokens: Tokens) -> Any:
    images = transformers.SiglipImageProcessor(size={"height": 224, "width": 224}, image_seq_length=256)
    return transformers.PaliGemmaProcessor(images, tokens)


def _image(key: str, vision: dict[str, Any], **more: Any) -> Callable[[Ids], dict[str, Any]]:
    """A config with the id of ``<image>``, and of ``<video>`` for models that have one."""
    return lambda ids: {key: ids("<image>"), "vision_config": vision, **more}


def _qwen(vision: dict[str, Any]) -> Callable[[Ids], dict[str, Any]]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return lambda ids: (
        {key: ids(f"<|{name}|>") for key, name in zip(keys, names, strict=True)} | {"vision_config": vision}
    )


def _idefics_tokens(*more: str) -> dict[str, str]:
    return {
        **EVERY_CELL,
        **dict.fromkeys(("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *more), ""),
    }


QWEN_TOKENS = dict.fromkeys(("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"), "")
_QWEN: dict[str, Any] = dict(
    chat="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + QWEN_CHAT, special=QWEN_TOKENS,
    image="<|vision_start|><|image_pad|><|vision_end|>", video="<|vision_start|><|video_pad|><|vision_end|>",
)  # fmt: skip
_USER = "USER: {}\n{question} ASSISTANT:"

CHECKPOINTS: dict[str, Checkpoint] = {
    "LLaVA-1.5": Checkpoint(
        "llava", _llava, _image("image_token_index", {"image_size": 336, "patch_size": 14}), _USER, "<image>",
        bos="<s>",
    ),
    "LLaVA-NeXT": Checkpoint(
        "llava_next", _llava_next,
        _image("image_token_index", {"image_size": 336, "patch_size": 14}, image_grid_pinpoints=NEXT_PINS),
        _USER, "<image>", bos="<s>",
    ),
    "LLaVA-OneVision": Checkpoint(
        "llava_onevision", _llava_onevision,
        lambda ids: {
            "image_token_index": ids("<image>"), "video_token_index": ids("<video>"),
            "vision_config": {"image_size": 384, "patch_size": 14}, "image_grid_pinpoints": ONEVISION_PINS,
            "vision_aspect_ratio": "anyres_max_9",
        },
        "<|im_start|>user {}\n{question}<|im_end|><|im_start|>assistant\n", "<image>", "<video>", special=QWEN_TOKENS,
    ),
    "Qwen2-VL": Checkpoint("qwen2_vl", _qwen2("Qwen2VLProcessor"), _qwen({"patch_size": 14}), **_QWEN),
    "Qwen2.5-VL": Checkpoint(
        "qwen2_5_vl", _qwen2("Qwen2_5_VLProcessor"), _qwen({"patch_size": 14, "window_size": 112}), **_QWEN
    ),
    "Qwen3-VL": Checkpoint(
        "qwen3_vl", _qwen3, _qwen({"patch_size": 16, "num_position_embeddings": 2304}), **{**_QWEN, "chat": QWEN_CHAT}
    ),
    "InternVL3": Checkpoint(
        "internvl", _internvl,
        lambda ids: {
            "image_token_id": ids("<IMG_CONTEXT>"), "image_seq_length": 256,
            "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
        },
        "<|im_start|>user\n{}\n{question}<|im_end|>\n<|im_start|>assistant\n", "<IMG_CONTEXT>", "<video>",
        special={
            **QWEN_TOKENS, "<img>": "start_image_token", "</img>": "end_image_token",
            "<IMG_CONTEXT>": "context_image_token", "<video>": "video_token",
        },
    ),
    "Idefics3": Checkpoint(
        "idefics3", _idefics3(1456, 364, 169),
        _image("image_token_id", {"image_size": 364, "patch_size": 14}),
        "<|begin_of_text|>User:{}{question}<end_of_utterance>\nAssistant:", "<image>",
        special=_idefics_tokens(), bos="<|begin_of_text|>",
    ),
    "SmolVLM": Checkpoint(
        "idefics3", _idefics3(1536, 384, 81),
        _image("image_token_id", {"image_size": 384, "patch_size": 14}, scale_factor=3),
        "<|im_start|>User:{}{question}<end_of_utterance>\nAssistant:", "<image>",
        special=_idefics_tokens("<|im_start|>"),
    ),
    "SmolVLM2": Checkpoint(
        "smolvlm", _smolvlm2,
        _image("image_token_id", {"image_size": 512, "patch_size": 16}, scale_factor=4),
        "<|im_start|>User:{}{question}<end_of_utterance>\nAssistant:", "<image>", "<video>",
        special=_idefics_tokens("<|im_start|>"), needs=("num2words",),
    ),
    "Gemma 3": Checkpoint(
        "gemma3", _gemma3,
        lambda ids: {
            "image_token_index": ids("<image_soft_token>"), "boi_token_index": ids("<start_of_image>"),
            "eoi_token_index": ids("<end_of_image>"), "mm_tokens_per_image": 256,
            "vision_config": {"image_size": 896, "patch_size": 14},
        },
        "<bos><start_of_turn>user\n{}{question}<end_of_turn>\n<start_of_turn>model\n", "<start_of_image>",
        special={
            "<image_soft_token>": "image_token", "<start_of_image>": "boi_token", "<end_of_image>": "eoi_token",
            "<start_of_turn>": "", "<end_of_turn>": "",
        },
        bos="<bos>",
    ),
    "Pixtral": Checkpoint(
        "llava_pixtral", _pixtral,
        lambda ids: {"image_token_index": ids("[IMG]"), "vision_config": {"image_size": 1024, "patch_size": 16}},
        "<s>[INST]{}{question}[/INST]", "[IMG]",
        special=dict.fromkeys(("[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]"), ""), bos="<s>",
    ),
    "PaliGemma": Checkpoint(
        "paligemma", _paligemma,
        _image("image_token_index", {"image_size": 224, "patch_size": 14}), "{}{question}", "<image>",
    ),
}  # fmt: skip


def tokenizer(checkpoint: Checkpoint) -> Tokens:
    """A byte-level BPE, trained on a few sentences; the first token in front of a text where the family has one."""
    first = checkpoint.bos or "<bos>"
    placeholders = [token for token in (checkpoint.image, checkpoint.video) if token and token.count("<") < 2]
    pads = ["<|image_pad|>", "<|video_pad|>"] if "image_pad" in checkpoint.image else []
    special = list(dict.fromkeys(["<pad>", first, "<eos>", *placeholders, *pads, *checkpoint.special]))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=480, special_tokens=special, initial_alphabet=alphabet)
    )
    if checkpoint.bos:
        pattern = f"{first} $A"
        core.post_processor = processors.TemplateProcessing(
            single=pattern, pair=f"{pattern} $B", special_tokens=[(first, core.token_to_id(first))]
        )
    named = {attribute: token for token, attribute in checkpoint.special.items() if attribute}
    return Tokens(
        tokenizer_object=core, pad_token="<pad>", bos_token=first, eos_token="<eos>", extra_special_tokens=named
    )


def template(checkpoint: Checkpoint) -> str:
    """The chat template that writes ``checkpoint.chat``."""
    before, after = checkpoint.chat.split("{question}")
    before, between = before.split("{}")
    media = "".join(
        "{% if part['type'] == '" + kind + "' %}{{ " + repr(token) + " }}{% endif %}"
        for kind, token in (("image", checkpoint.image), ("video", checkpoint.video))
        if token
    )
    parts = "{% for part in messages[0]['content'] %}"
    texts = parts + "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    written = [f"{{{{ {text!r} }}}}" for text in (before, between, after)]
    return written[0] + parts + media + "{% endfor %}" + written[1] + texts + written[2]


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {
        k: _merged(base[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return {**base, **changes, **nested}


def save(name: str, folder: Path) -> Path:
    """The tiny model and the processor of a published checkpoint, saved to ``folder``."""
    checkpoint = CHECKPOINTS[name]
    family, tokens = FAMILIES[checkpoint.family], tokenizer(checkpoint)
    processor = checkpoint.processor(tokens)
    if name != "PaliGemma":  # the published one has none
        processor.chat_template = template(checkpoint)
    ids = {"pad_token_id": tokens.pad_token_id, "bos_token_id": tokens.bos_token_id}
    size = len(tokens) + -len(tokens) % 8
    text = {"text_config": {"vocab_size": size, "max_position_embeddings": 2**15, **ids}}
    config = AutoConfig.for_model(
        family.kind or checkpoint.family,
        **_merged(_merged(family.config(), text), checkpoint.config(tokens.convert_tokens_to_ids)),
    )
    model = construct_default(config, "sdpa")
    draw_weights(model, 0, family.gain)
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def scene(width: int, height: int) -> Image.Image:
    """Waves of colour."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127.5 + 127.5 * np.sin(columns / (9 + 4 * i) + rows / (13 - 3 * i)) for i in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@cache
def pictures() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Files of many shapes and kinds of pixels, each with the width and height that a viewer shows."""
    turned = Image.Exif()
    turned[274] = 6  # stored lying on its side
    wide, small = scene(640, 480), scene(320, 240)
    see_through = small.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(small.size))
    deep = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    return {
        "photo": (encoded(wide, "JPEG"), (640, 480)),
        "portrait": (encoded(scene(360, 800), "JPEG"), (360, 800)),
        "tiny": (encoded(scene(28, 28), "PNG"), (28, 28)),
        "line": (encoded(scene(2000, 1), "PNG"), (2000, 1)),
        "column": (encoded(scene(1, 2000), "PNG"), (1, 2000)),
        "grey": (encoded(small.convert("L"), "PNG"), (320, 240)),
        "16-bit": (encoded(deep, "PNG"), (320, 240)),
        "RGBA": (encoded(see_through, "PNG"), (320, 240)),
        "CMYK": (encoded(small.convert("CMYK"), "JPEG"), (320, 240)),
        "turned": (encoded(wide, "JPEG", exif=turned.tobytes()), (480, 640)),
    }


def write_rows(folder: Path, shown: Mapping[str, list[str]]) -> Path:
    """A data file with a question for each entry, about the ``pictures`` that it lists; "film" is one of 20 frames."""
    for name, (content, _) in pictures().items():
        (folder / f"{name}.img").write_bytes(content)
    if films := [names for names in shown.values() if "film" in names]:
        write_film(folder / "film.mp4", 20)
    rows = []
    for key, names in shown.items():
        row: dict[str, Any] = {"id": key, "question": f"What is in {key}?", "answers": ["x"]}
        row["image"] = [f"{name}.img" for name in names if name != "film"] or None
        rows.append(row | ({"video": "film.mp4" if "film" in names else None} if films else {}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
