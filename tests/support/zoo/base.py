"""What every family of the zoo shares: the shape of an entry, token ids, small configs, rows, weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

OLD = Version(transformers.__version__) < Version("5.23")  # 5.17 names and shapes some inputs otherwise
VOCAB, PAD, BOS = 128, 0, 1
IMAGE, VIDEO, START, END, AUDIO, NEWLINE, SEPARATOR = 120, 121, 122, 123, 124, 125, 126
WORDS = (4, 100)  # ordinary text tokens are drawn from this range
DEPTH = 4

TEXT: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=DEPTH, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None,
)  # fmt: skip
MOE: dict[str, Any] = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
CLIP: dict[str, Any] = dict(
    model_type="clip_vision_model", hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    image_size=16, patch_size=4,
)  # fmt: skip
SIGLIP: dict[str, Any] = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}


def text(kind: str, **changes: Any) -> dict[str, Any]:
    """A small text config of a registered model type."""
    return {"model_type": kind, **TEXT, **changes}


Layout = Sequence[Sequence[int]]  # for each sample, the size (0 = the plain one) of each of its pictures
Runs = list[list[list[int]]]  # for each sample and picture, the tokens that stand for it
Media = Callable[[Layout, torch.Generator], tuple[dict[str, Any], Runs]]


@dataclass
class Family:
    """How to build one family's tiny model and its inputs."""

    config: Callable[[], dict[str, Any]]  # the arguments of its config class
    image: Media | None = None
    video: Media | None = None
    variants: tuple[str, ...] = ("two_images", "text_only_row")
    visual: tuple[int, ...] = (IMAGE, VIDEO)
    finish: Callable[[dict[str, Any]], None] | None = None  # adds inputs that follow from input_ids
    tune: Callable[[torch.nn.Module], None] | None = None  # after the weights are drawn
    build: Callable[[Any, str], torch.nn.Module] | None = None
    find: Callable[[dict[str, Any]], torch.Tensor] | None = None  # visual positions, where ids do not tell
    gain: float = 1.0
    prefix: tuple[int, ...] = (BOS,)
    front: bool = False  # pictures stand before all text
    attn: tuple[str, ...] = ("eager", "sdpa")
    refused: str = ""
    broken: str = ""  # why the installed transformers cannot run the dense model itself
    mend: Callable[[torch.nn.Module], None] | None = None  # gives a built model what it is broken without
    kind: str = ""  # the model type, where the entry is a second kind of one family
    beyond: bool = False  # an index that selects fewer keys than the sequence has


FAMILIES: dict[str, Family] = {}


def add(name: str, config: Callable[[], dict[str, Any]], image: Media | None = None, **more: Any) -> None:
    """Enter a family, if the installed transformers has it."""
    if more.get("kind", name) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        FAMILIES[name] = Family(config, image, **more)


@dataclass
class Batch:
    """Inputs for forward and generate as they are, and where the visual placeholders stand [B, S]."""

    inputs: dict[str, Any]
    visual: torch.Tensor

    @property
    def ids(self) -> torch.Tensor:
        return self.inputs["input_ids"]

    @property
    def mask(self) -> torch.Tensor:
        """Bool [B, S]: not padding."""
        mask = self.inputs.get("attention_mask")
        return torch.ones_like(self.visual) if mask is None else mask.bool()


def construct_default(config: Any, attn: str | dict[str, str]) -> Any:
    """The model of a config, as the auto class makes it."""
    return AutoModelForImageTextToText.from_config(config, attn_implementation=attn)


def construct(name: str, attn: str, seed: int) -> torch.nn.Module:
    """The model of a family, its weights drawn at a scale at which pictures move the logits."""
    family = FAMILIES[name]
    config = AutoConfig.for_model(family.kind or name, **copy.deepcopy(family.config()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (family.build or construct_default)(config, attn)
    draw_weights(model, seed, family.gain)
    if family.tune:
        with torch.no_grad():
            family.tune(model)
    for module in model.modules():  # some families generate by an inner model
        generation = getattr(module, "generation_config", None)
        if isinstance(generation, GenerationConfig):
            generation.eos_token_id, generation.pad_token_id, generation.bos_token_id = None, PAD, BOS
    return model.float().eval()


def draw_weights(model: torch.nn.Module, seed: int, gain: float = 1.0) -> None:
    """Redraw every matrix with unit gain (embeddings at 0.5, or 0.2 where they are the head as well): the default 0.02
    leaves tiny models all but silent."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    heads = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.is_floating_point():
                continue
            fan_in = parameter[0].numel() if parameter.ndim > 3 else parameter.shape[-1]
            scale = gain / fan_in**0.5
            if id(parameter) in embeddings:
                scale = 0.2 if id(parameter) in heads else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def layout(padding: str, variant: str) -> list[list[int]]:
    """Which pictures each of the three samples has, by size."""
    if variant == "two_images":
        return [[0, 1], [0], [2]] if padding != "none" else [[0, 0], [0], [0]]
    if variant == "text_only_row":
        return [[0], [], [1]]
    return [[0], [0], [0]] if padding == "none" else [[0], [1], [2]]


def make_batch(name: str, padding: str, seed: int, variant: str) -> Batch:
    """Three samples of text, pictures, text; see ``layout``."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(seed)
    media = family.video if variant == "video" else family.image
    assert media is not None
    extra, runs = media(layout(padding, variant), generator)
    rows = []
    for i, pictures in enumerate(runs):
        before, after = (3, 7) if padding == "none" and variant != "text_only_row" else (2 + i, 4 + 2 * i)
        words = torch.randint(*WORDS, (before + 2 * len(pictures) + after,), generator=generator).tolist()
        row = list(family.prefix) + ([] if family.front else [words.pop() for _ in range(before)])
        for place, run in enumerate(pictures):
            row += run if place == 0 else [words.pop(), words.pop(), *run]
        rows.append(row + words)
    if padding == "none" and len({len(r) for r in rows}) > 1:  # same lengths: text fills what pictures leave
        size = max(map(len, rows))
        rows = [r + torch.randint(*WORDS, (size - len(r),), generator=generator).tolist() for r in rows]
    ids, mask = pad_rows(rows, padding)
    inputs = {"input_ids": ids, "attention_mask": mask, **extra}
    if family.finish:
        family.finish(inputs)
    return Batch(inputs, family.find(inputs) if family.find else torch.isin(ids, torch.tensor(family.visual)))


def in_turn(*medias: Media) -> Media:
    """Pictures of several kinds: the first of a sample is of the kind of its number, the next of the next."""

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        pieces: dict[str, list[torch.Tensor]] = {}
        runs: Runs = []
        for b, sample in enumerate(pictures):
            runs.append([])
            for place, size in enumerate(sample):
                inputs, (own,) = medias[(b + place) % len(medias)]([[size]], generator)
                runs[-1] += own
                for name, value in inputs.items():
                    pieces.setdefault(name, []).append(value)
        return {name: torch.cat(values) for name, values in pieces.items()}, runs

    return media


def pad_rows(rows: list[list[int]], padding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one tensor with its attention mask."""
    size = max(map(len, rows))
    ids, mask = torch.full((len(rows), size), PAD), torch.zeros(len(rows), size, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(size - len(row), size) if padding == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids, mask


def boxed(count: int, side: int = 16, start: Sequence[int] = (), end: Sequence[int] = (), masks: bool = True) -> Media:
    """Pictures in one box [B, most pictures of a sample, 3, H, W], zero where a sample has fewer (Idefics)."""

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        most = max(map(len, pictures))
        box = torch.zeros(len(pictures), most, 3, side, side)
        mask = torch.zeros(len(pictures), most, side, side, dtype=torch.long)
        for i, sample in enumerate(pictures):
            box[i, : len(sample)] = torch.randn(len(sample), 3, side, side, generator=generator)
            mask[i, : len(sample)] = 1
        inputs = {"pixel_values": box} | ({"pixel_attention_mask": mask} if masks else {})
        return inputs, [[[*start, *([IMAGE] * count), *end] for _ in sample] for sample in pictures]

    return media


def sized(count: Callable[[int, int], int], sizes: Sequence[tuple[int, int]], key: str = "image_sizes") -> Media:
    """Pictures of several sizes, padded to the largest, with their sizes (Pixtral)."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        flat = [sizes[size] for sample in pictures for size in sample]
        pixels = torch.randn(len(flat), 3, height, width, generator=generator)
        for i, (h, w) in enumerate(flat):
            pixels[i, :, h:], pixels[i, :, :, w:] = 0, 0
        runs = [[[IMAGE] * count(*sizes[size]) for size in sample] for sample in pictures]
        return {"pixel_values": pixels, key: torch.tensor(flat)}, runs

    return media


def token_types(key: str = "mm_token_type_ids") -> Callable[[dict[str, Any]], None]:
    """Adds the map of modalities: 1 image, 2 video."""

    def finish(inputs: dict[str, Any]) -> None:
        ids = inputs["input_ids"]
        inputs[key] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()

    return finish


def fixed(
    count: int, shape: tuple[int, ...] = (3, 16, 16), key: str = "pixel_values", token: int = IMAGE,
    start: Sequence[int] = (), end: Sequence[int] = (), **more: Callable[[int], Any],
) -> Media:  # fmt: skip
    """All pictures have one shape and count; ``more`` are further inputs as functions of the number of pictures."""

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        total = sum(map(len, pictures))
        inputs = {key: torch.randn(total, *shape, generator=generator)}
        inputs |= {name: make(total) for name, make in more.items()}
        return inputs, [[[*start, *([token] * count), *end] for _ in sample] for sample in pictures]

    return media


def patches(
    patch: int = 4, merge: int = 2, temporal: int = 2, sizes: Sequence[tuple[int, int]] = ((6, 8), (4, 4), (8, 4)),
    frames: int = 1, keys: tuple[str, str] = ("pixel_values", "image_grid_thw"), token: int = IMAGE,
    start: Sequence[int] = (START,), end: Sequence[int] = (END,), channels: int = 3, flat: bool = True,
    split_frames: bool = False, merge_frames: int = 1, timed: bool = True,
) -> Media:  # fmt: skip
    """Pictures of any size as a flat list of patches with their grids (Qwen-VL and its like)."""

    def media(pictures: Layout, generator: torch.Generator) -> tuple[dict[str, Any], Runs]:
        grids = [(frames, *sizes[size]) for sample in pictures for size in sample]
        total = sum(t * h * w for t, h, w in grids)
        shape = (channels * temporal * patch * patch,) if flat else (channels, patch, patch)
        runs: Runs = []
        for sample in pictures:
            runs.append([])
            for size in sample:
                height, width = sizes[size]
                count = height * width // merge**2
                one = [*start, *([token] * count), *end]
                whole = [*start, *([token] * (frames // merge_frames * count)), *end]
                runs[-1].append(one * frames if split_frames else whole)
        places = torch.tensor(grids)
        if not timed:
            places = places[:, 1:]
        return {keys[0]: torch.randn(total, *shape, generator=generator), keys[1]: places}, runs

    return media
