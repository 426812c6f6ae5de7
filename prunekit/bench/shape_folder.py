"""A folder of a named shape without weights, for engines that open folders: config, and a processor of plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit.bench.shapes import SHAPES, config_of
from prunekit.errors import PrunekitError

MODEL_TYPE = "llava"


def write_shape(name: str, folder: Path) -> None:
    """Write the folder.

    Raises:
        PrunekitError: for an unknown shape, or one without a processor here.
    """
    from transformers import CLIPImageProcessor, LlavaProcessor

    config = config_of(name)
    if config.model_type != MODEL_TYPE:
        known = ", ".join(shape for shape, row in SHAPES.items() if row["model_type"] == MODEL_TYPE)
        raise PrunekitError(f"bench.engine=vllm builds the shapes {known}, not '{name}'")
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    side = config.vision_config.image_size
    pixels = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    words = _tokenizer(config.text_config.vocab_size, config.image_token_index)
    LlavaProcessor(
        pixels, words, patch_size=config.vision_config.patch_size, image_token="<image>",
        vision_feature_select_strategy=config.vision_feature_select_strategy, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


def picture_size(name: str) -> tuple[int, int]:
    """Width and height of the shape's picture."""
    side = config_of(name).vision_config.image_size
    return side, side


def prompt(before: int, after: int) -> str:
    """So many words before and after a picture, whose tokenizer ``write_shape`` writes."""
    words = [f"w{number % 64 + 8}" for number in range(before + after)]
    return " ".join([*words[:before], "<image>", *words[before:]])


def _tokenizer(size: int, image: int) -> Any:
    """One word, one token: "w8" is token 8."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", image: "<image>"}
    vocabulary = {special.get(number, f"w{number}"): number for number in range(size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
