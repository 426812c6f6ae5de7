"""The embedded model's tokenizer and processor: whole words, codes letter by letter, a chat template."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from prunekit.data.questions import vocabulary
from prunekit.data.words import CORNERS, ORDINALS

PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>"
SPECIAL = (PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT)
SYSTEM = ("answer", "briefly")
SPACE = "▁"
MARKS = ")?.,:;!'\"("
SINGLE = "abcdefghijklmnopqrstuvwxyz0123456789"

CHAT_TEMPLATE = (
    "{{ '<s>' }}"
    "{% if messages[0]['role'] != 'system' %}{{ 'answer briefly' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<user>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


CELL_NAMES = tuple(f"row {row} column {column}" for row in ORDINALS for column in ORDINALS)
PLACES = (*CELL_NAMES, *CORNERS)  # one token each


def word_list() -> list[str]:
    """Whole words of the vocabulary, sorted."""
    return sorted({*vocabulary(), *SYSTEM})


def piece(name: str) -> str:
    """The token of a word or place."""
    return SPACE + name.replace(" ", SPACE)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer; places such as "top left" are one token, unknown words are spelt in letters.

    Words carry a leading space mark, letters none, so that the letters of a code join when they are decoded.
    """
    words = word_list()
    pieces = [*SPECIAL, *map(piece, words), *SINGLE, *MARKS, *map(piece, PLACES)]
    core = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token=UNK))
    known = "|".join(sorted((piece(name)[1:] for name in (*words, *PLACES)), key=lambda name: (-len(name), name)))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), SPACE),
            normalizers.Replace(Regex(rf"^(?=(?:{known})(?![a-z0-9]))"), SPACE),
            normalizers.Replace(Regex(rf"{SPACE}(?!(?:{known})(?![a-z0-9]))"), ""),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{SPACE}(?:{known})|[^{SPACE}]"), behavior="isolated")
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, USER, ASSISTANT],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor(image_size: int, patch: int) -> LlavaProcessor:
    """The processor: resizes to a square, normalises to [-1, 1], puts (image_size / patch)^2 placeholders."""
    images = CLIPImageProcessor(
        size={"height": image_size, "width": image_size},
        do_resize=True,
        do_center_crop=False,
        do_convert_rgb=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",  # the CLS token is dropped ...
        num_additional_image_tokens=1,  # ... and not counted
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
