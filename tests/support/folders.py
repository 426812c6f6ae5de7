"""Tiny random models saved to folders with processors of their own kind, as a hub's copy would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

import zoo
from zoo.base import BOS, END, IMAGE, PAD, START, VIDEO, VOCAB

CHARACTERS = "abcdefghijklmnopqrstuvwxyz?.,:'()0123456789 \n"
FIRST = 4  # of the characters' ids; below stand pad, bos, end of turn and unknown

TEMPLATE = (
    "{% for message in messages %}{{ '<turn>' + message['role'] + '\\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% elif part['type'] == 'video' %}{{ 'VIDEO' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\\n' }}{% endif %}"
)


def tokenizer(image: str, named: dict[str, str] | None = None, **specials: int) -> transformers.PreTrainedTokenizerFast:
    """Letters one by one, the first token in front; ``specials`` are further tokens by id."""
    tokens = {"<pad>": PAD, "<bos>": BOS, "<turn>": 2, "<unk>": 3, image: IMAGE, **specials}
    vocab = {**{c: FIRST + i for i, c in enumerate(CHARACTERS)}, **tokens}
    vocab |= {f"<unused{i}>": i for i in range(VOCAB) if i not in vocab.values()}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    core.add_special_tokens(list(tokens))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<turn>", unk_token="<unk>",
        extra_special_tokens=named or {},
    )  # fmt: skip


def llava(template: str | None) -> Any:
    size = {"height": 16, "width": 16}
    images = transformers.CLIPImageProcessor(size=size, crop_size=size)
    return transformers.LlavaProcessor(
        images, tokenizer("<image>"), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


def llava_next(template: str | None) -> Any:
    size = {"height": 8, "width": 8}
    pins = [[8, 16], [16, 8], [16, 16]]
    images = transformers.LlavaNextImageProcessor(size=size, crop_size=size, image_grid_pinpoints=pins)
    return transformers.LlavaNextProcessor(
        images, tokenizer("<image>"), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


def llava_onevision(template: str | None) -> Any:
    size, pins = {"height": 8, "width": 8}, [[8, 16], [16, 8], [16, 16]]
    images = transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pins)
    return transformers.LlavaOnevisionProcessor(
        images, tokenizer("<image>", **{"<video>": VIDEO}), transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4, vision_feature_select_strategy="full", chat_template=template,
    )  # fmt: skip


def llava_next_video(template: str | None) -> Any:
    size = {"height": 8, "width": 8}
    pins = [[8, 16], [16, 8], [16, 16]]
    images = transformers.LlavaNextImageProcessor(size=size, crop_size=size, image_grid_pinpoints=pins)
    return transformers.LlavaNextVideoProcessor(
        transformers.LlavaNextVideoVideoProcessor(size=size, crop_size=size), images,
        tokenizer("<image>", **{"<video>": VIDEO}), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


def video_llava(template: str | None) -> Any:
    size = {"height": 12, "width": 12}
    images = transformers.VideoLlavaImageProcessor(size=size, crop_size=size)
    return transformers.VideoLlavaProcessor(
        images, transformers.VideoLlavaVideoProcessor(size=size, crop_size=size),
        tokenizer("<image>", **{"<video>": VIDEO}), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


def qwen(processor: str, video: str) -> Callable[[str | None], Any]:
    def made(template: str | None) -> Any:
        sizes = {"shortest_edge": 64, "longest_edge": 1024}
        patches: dict[str, Any] = dict(patch_size=4, merge_size=2, temporal_patch_size=2)
        images = transformers.Qwen2VLImageProcessor(size=sizes, **patches)
        ids = {"<|video_pad|>": VIDEO, "<|vision_start|>": START, "<|vision_end|>": END}
        for word in ("<|image_pad|>", "<|video_pad|>"):
            template = template and template.replace(word, f"<|vision_start|>{word}<|vision_end|>")
        videos = getattr(transformers, video)(size=sizes, **patches)
        return getattr(transformers, processor)(
            images, tokenizer("<|image_pad|>", **ids), videos, chat_template=template
        )

    return made


def internvl(template: str | None) -> Any:
    size = {"height": 24, "width": 24}
    images = transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=2)
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    ids = {"<img>": START, "</img>": END, "<video>": VIDEO}
    return transformers.InternVLProcessor(
        images, tokenizer("<IMG_CONTEXT>", named, **ids), transformers.InternVLVideoProcessor(size=size),
        image_seq_length=9, chat_template=template,
    )  # fmt: skip


def idefics3(template: str | None) -> Any:
    edge = {"longest_edge": 24}
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 48}, max_image_size=edge)
    ids = {"<fake_token_around_image>": START, "<end_of_utterance>": END, "<global-img>": 125}
    return transformers.Idefics3Processor(images, tokenizer("<image>", **ids), image_seq_len=9, chat_template=template)


def gemma3(template: str | None) -> Any:
    images = transformers.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    ids = {"<start_of_image>": START, "<end_of_image>": END}
    made = tokenizer("<image_soft_token>", named, **ids)
    return transformers.Gemma3Processor(images, made, image_seq_length=16, chat_template=template)


PROCESSORS: dict[str, tuple[Callable[[str | None], Any], str]] = {
    "llava": (llava, "<image>"),
    "llava_next": (llava_next, "<image>"),
    "llava_onevision": (llava_onevision, "<image>"),
    "qwen2_5_vl": (qwen("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"), "<|image_pad|>"),
    "qwen3_vl": (qwen("Qwen3VLProcessor", "Qwen3VLVideoProcessor"), "<|image_pad|>"),
    "internvl": (internvl, "<IMG_CONTEXT>"),
    "idefics3": (idefics3, "<image>"),
    "gemma3": (gemma3, "<start_of_image>"),
    "llava_next_video": (llava_next_video, "<image>"),
    "video_llava": (video_llava, "<image>"),
}
"""How to make a family's processor, and what stands for an image in its prompts."""

VIDEOS: dict[str, str] = {
    "llava_onevision": "<video>",
    "llava_next_video": "<video>",
    "video_llava": "<video>",
    "qwen2_5_vl": "<|video_pad|>",
    "qwen3_vl": "<|video_pad|>",
    "internvl": "<video>",
}
"""Families that take videos, and what stands for one in their prompts."""


def save(family: str, folder: Path, template: str | None = TEMPLATE) -> Path:
    """A family's tiny model and its processor, saved to ``folder``."""
    make, image = PROCESSORS[family]
    zoo.build(family).save_pretrained(folder)
    if template is not None:
        template = template.replace("VIDEO", VIDEOS.get(family, "")).replace("IMAGE", image)
    make(template).save_pretrained(folder)
    return folder
