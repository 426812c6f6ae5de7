"""Vision encoders: where a model keeps its blocks, their queries and keys, its CLS token, what the projector reads."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.families.base import Family
from prunekit.families.implementation import implementation_of
from prunekit.families.support import SUPPORT, VISION_ENCODERS, PatchLayout, support_of
from prunekit.families.wrappers import unwrapped

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class VisionTower:
    """One vision encoder, seen through what prunekit needs of it.

    Attributes:
        module: the encoder itself.
        blocks: its transformer blocks.
        attentions: the attention module of each block.
        prefix: tokens before the patches (CLS, registers); the first is the CLS token if ``has_cls``.
        read: index of the block whose output the projector reads (timm: the last).
        patches: patches of an image where every image has equally many, else None.
        grid: rows and columns of these patches.
        group: patches that stand behind one visual token, a square of them.
        order: patches of an image in an order in which those of a token are neighbours, long [P]; None if they are so.
        projector: the module that is handed the features of patches, or of squares of them; None for an encoder alone.
        project: features of tokens [..., group · C], as the projector is handed them, to visual tokens [..., D].
        norm, tail: names, in a block, of the norm before the MLP and of the last module of the MLP's branch.
        packed: images stand behind each other in one sequence without a batch axis.
        patch_size: of packed images that come with their sizes in pixels (Pixtral); 0 where they come with grids.
        averages: of packed images, the encoder averages squares of patches, of a size that comes with each image.
        tiled: images are cut into tiles, which are packed with newlines.
        tiles: whether images may be cut into tiles at all.
        halves: of packed images, the block behind which the encoder itself joins squares of 2 × 2 patches (MiniCPM-V);
            None for other encoders.
        twins: encoders of the same kind that the model has for other media (Video-LLaVA's for videos).
        pixels: whether it takes images of other sizes, with interpolated positions.
    """

    module: nn.Module
    blocks: Sequence[nn.Module]
    attentions: tuple[nn.Module, ...]
    read: int
    projector: nn.Module | None
    norm: str
    tail: str
    prefix: int = 0
    patches: int | None = None
    grid: tuple[int, int] | None = None
    group: int = 1
    has_cls: bool = False
    project: Callable[[torch.Tensor], torch.Tensor] | None = None
    order: torch.Tensor | None = None
    packed: bool = False
    patch_size: int = 0
    averages: bool = False
    tiled: bool = False
    tiles: bool = False
    halves: int | None = None
    twins: tuple[VisionTower, ...] = ()
    pixels: bool = True
    name: str = ""

    @property
    def implementation(self) -> str:
        """The attention implementation's name of the moment; "" where it is not transformers' interface (timm)."""
        config = getattr(self.attentions[0], "config", None)
        return "" if config is None else implementation_of(config)

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """Rows and columns of visual tokens of an image, where every image has the same."""
        side = math.isqrt(self.group)
        return None if self.grid is None else (self.grid[0] // side, self.grid[1] // side)

    def refuses_cuts(self) -> str | None:
        """Why tokens cannot go inside this encoder, None if they can."""
        if self.group > 1:
            return f"its projector joins {self.group} neighbouring patches, of which none may be missing"
        if self.twins:
            return "images and videos have an encoder each"
        if self.averages:
            return "it averages neighbouring patches of videos, of which none may be missing"
        if self.tiled:
            return "its tiles are packed with newline tokens, of which it is undefined which should stay"
        return None


def vision_of(family: Family) -> VisionTower:
    """The vision encoder of a loaded model.

    Raises:
        PrunekitError: where it is not known which patches stand behind each visual token.
    """
    name, tower = family.model_type, family.vision_tower
    patches = support_of(name).patches
    named = (getattr(family.core, name, None) for name in ("aligner", "projector"))  # names that few families use
    projector = next((p for p in (family.projector, *named) if p is not None), None)
    if patches is None or tower is None or projector is None:
        names = sorted(name for name, row in SUPPORT.items() if row.patches is not None)
        raise _unknown(name, f"known for {', '.join(names)}")
    config: PretrainedConfig = tower.config
    if config.model_type == "pixtral":
        return _pixtral(family, tower, projector)
    if hasattr(config, "insert_layer_id"):
        return _minicpm(family, tower, projector)
    if config.model_type == "video_llama_3_vision":
        return _video_llama(family, tower, projector)
    if patches.packed:
        return _packed(family, tower)
    plain = _plain(family, patches, tower, projector)
    if (films := getattr(family.core, "video_tower", None)) is not None:
        return replace(plain, twins=(_plain(family, patches, unwrapped(films), projector),))
    return plain


def _unknown(name: str, why: str) -> PrunekitError:
    return PrunekitError(f"'{name}': which patches stand behind each visual token is not known ({why})")


def _plain(family: Family, patches: PatchLayout, tower: nn.Module, projector: nn.Module) -> VisionTower:
    """A ViT over images of one size, read by a projector patch by patch, or square by square."""
    config: PretrainedConfig = tower.config
    name = family.model_type
    encoder = VISION_ENCODERS.get(config.model_type)
    if encoder is None or not (encoder.clip_layout or patches.joins):
        readable = (kind for kind, row in VISION_ENCODERS.items() if row.clip_layout)
        raise _unknown(name, f"its encoder is '{config.model_type}', not {' or '.join(readable)}")
    prefix = encoder.prefix
    layer, strategy = -1, "full"
    if not patches.reads_output:
        layer = getattr(family.config, "vision_feature_layer", -1)
        strategy = getattr(family.config, "vision_feature_select_strategy", "full")
    if not isinstance(layer, int):
        raise _unknown(name, f"its projector reads several layers, {list(layer)}")
    if (strategy == "default") != bool(prefix):
        raise _unknown(name, f"vision_feature_select_strategy='{strategy}' on {config.model_type}")
    blocks = _blocks(tower)
    read = layer % (len(blocks) + 1) - 1
    if read < 0:
        raise _unknown(name, "its projector reads the patch embedding")
    size, patch = (n if isinstance(n, int) else n[0] for n in (config.image_size, config.patch_size))
    side = size // patch
    projector, project, across = _square(family, patches, projector, side)
    return VisionTower(
        module=tower,
        blocks=blocks,
        attentions=tuple(unwrapped(getattr(block, encoder.attention)) for block in blocks),
        prefix=prefix,
        read=read,
        patches=side * side,
        grid=(side, side),
        group=across**2,
        projector=projector,
        project=project,
        order=square_order(side, side, across) if across > 1 else None,
        norm="layer_norm2",
        tail="mlp",
        has_cls=bool(prefix),
        tiled=patches.tiled,
        tiles=patches.tiled or patches.joins == "shuffle",
        name=name,
    )


def _blocks(tower: nn.Module) -> list[Any]:
    """The transformer blocks of an encoder."""
    lists = (getattr(module, name, None) for module in tower.modules() for name in ("layers", "layer"))
    return [unwrapped(block) for block in next(layers for layers in lists if isinstance(layers, nn.ModuleList))]


def _square(
    family: Family, patches: PatchLayout, projector: Any, side: int
) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor], int]:
    """Which module is handed the features of tokens, what makes visual tokens of them, and how many patches on a side
    stand behind each."""
    config: PretrainedConfig = family.config
    if patches.joins == "pool":  # Gemma 3 averages before a norm and a product
        inner = projector.mm_soft_emb_norm
        return inner, lambda x: inner(x) @ projector.mm_input_projection_weight, side // projector.tokens_per_side
    if patches.joins == "shuffle" and hasattr(projector, "modality_projection"):  # Idefics 3 joins them inside
        return projector.modality_projection, projector.modality_projection, config.scale_factor
    return projector, projector, round(1 / config.downsample_ratio) if patches.joins else 1


def square_order(rows: int, columns: int, across: int) -> torch.Tensor:
    """The patches of an image in raster order, those of each square of ``across`` × ``across`` side by side: [P]."""
    grid = torch.arange(rows * columns).view(rows // across, across, columns // across, across)
    return grid.transpose(1, 2).flatten()


def _pixtral(family: Family, tower: PreTrainedModel, projector: Any) -> VisionTower:
    """Pixtral's encoder, images of any size in one sequence, under LLaVA (a token a patch) or Mistral 3 (squares)."""
    config: PretrainedConfig = family.config
    blocks, layer = _blocks(tower), getattr(config, "vision_feature_layer", -1)
    if not isinstance(layer, int) or (read := layer % (len(blocks) + 1) - 1) < 0:
        raise _unknown(family.model_type, f"vision_feature_layer={layer}")
    merger = getattr(projector, "patch_merger", None)
    if merger is None:
        inner, project = projector, projector
    else:
        inner = merger.merging_layer
        project = lambda x: projector.linear_2(projector.act(projector.linear_1(inner(x))))  # noqa: E731
    return VisionTower(
        module=tower,
        blocks=blocks,
        attentions=tuple(unwrapped(block.attention) for block in blocks),
        read=read,
        group=1 if merger is None else merger.spatial_merge_size**2,
        projector=inner,
        project=project,
        norm="ffn_norm",
        tail="feed_forward",
        packed=True,
        patch_size=tower.config.patch_size,
        pixels=False,
        name=family.model_type,
    )


def _packed(family: Family, tower: PreTrainedModel) -> VisionTower:
    """A ViT of the Qwen-VL family."""
    blocks: list[Any] = [unwrapped(block) for block in tower.blocks]
    merger, group = tower.merger, tower.spatial_merge_size**2
    joined = hasattr(tower, "downsample")  # GLM-4V's merger is handed squares, joined by a convolution

    def project(x: torch.Tensor) -> torch.Tensor:
        if joined:
            return merger(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        return merger(x.reshape(-1, x.shape[-1] // group)).reshape(*x.shape[:-1], -1)

    return VisionTower(
        module=tower,
        blocks=blocks,
        attentions=tuple(unwrapped(block.attn) for block in blocks),
        read=len(blocks) - 1,
        group=group,
        projector=merger,
        project=project,
        norm="norm2",
        tail="mlp",
        packed=True,
        pixels=False,
        name=family.model_type,
    )


def _video_llama(family: Family, tower: PreTrainedModel, projector: nn.Module) -> VisionTower:
    """VideoLLaMA 3: images of any size in one sequence; the encoder itself averages squares of patches of videos."""
    return VisionTower(
        module=tower,
        blocks=_blocks(tower),
        attentions=tuple(unwrapped(block.self_attn) for block in _blocks(tower)),
        read=len(_blocks(tower)) - 1,
        projector=projector,
        project=projector,
        norm="layer_norm2",
        tail="mlp",
        packed=True,
        averages=True,
        pixels=False,
        name=family.model_type,
    )


def _minicpm(family: Family, tower: Any, projector: Any) -> VisionTower:
    """MiniCPM-V 4.6: images of any size in one sequence; squares of patches join behind one of the first blocks, and
    squares of what is left in the merger.

    Raises:
        PrunekitError: for a merger of several rounds, and an encoder that joins patches behind its last block.
    """
    blocks, inserted = _blocks(tower), tower.config.insert_layer_id
    if projector.merger_times != 1 or tuple(projector.merge_kernel_size) != (2, 2) or inserted >= len(blocks) - 1:
        raise _unknown(family.model_type, f"merger_times={projector.merger_times}, insert_layer_id={inserted}")
    return VisionTower(
        module=tower,
        blocks=blocks,
        attentions=tuple(unwrapped(block.self_attn) for block in blocks),
        read=len(blocks) - 1,
        group=4,
        projector=projector,
        project=lambda x: projector.mlp[0](x.flatten(0, -2)).view(*x.shape[:-1], -1),
        norm="layer_norm2",
        tail="mlp",
        packed=True,
        halves=inserted,
        tiles=True,
        pixels=False,
        name=family.model_type,
    )


def window_order(tower: PreTrainedModel, grids: torch.Tensor) -> torch.Tensor | None:
    """For each visual token in order the row of the merger that holds it; None where they are in order.

    Qwen2.5-VL sorts its rows by windows before its blocks, and back behind its merger.
    """
    if not hasattr(tower, "window_size"):
        return None
    make = getattr(sys.modules[type(tower).__module__], "get_vision_window_index", None)
    if make is None:  # a method of the encoder in older releases
        return torch.argsort(torch.as_tensor(tower.get_window_index(grids)[0]))
    sizes = {"spatial_merge_size": tower.spatial_merge_size, "window_size": tower.window_size}
    return torch.argsort(make(grids, **sizes, patch_size=tower.patch_size, kwargs={})[0])


def timm_tower(model: Any) -> VisionTower:
    """A plain ViT of timm.

    Raises:
        PrunekitError: for one whose blocks are laid out otherwise.
    """
    name, block = type(model).__name__, model.blocks[0]
    plain = all(hasattr(block, part) for part in ("norm1", "attn", "norm2", "mlp", "drop_path2"))
    if not plain or not hasattr(block.attn, "k_norm") or type(block).__name__ not in ("Block", "LayerScaleBlock"):
        raise PrunekitError(
            f"timm's {name} has blocks of the kind {type(block).__name__}: only plain ViTs can be pruned"
        )
    if getattr(model, "fc_norm", None) is None or not hasattr(model, "num_prefix_tokens"):
        raise PrunekitError(f"timm's {name} is no VisionTransformer: only plain ViTs can be pruned")
    return VisionTower(
        module=model,
        blocks=model.blocks,
        attentions=tuple(b.attn for b in model.blocks),
        prefix=model.num_prefix_tokens,
        read=len(model.blocks) - 1,
        patches=model.patch_embed.num_patches,
        grid=tuple(model.patch_embed.grid_size),
        projector=None,
        norm="norm2",
        tail="drop_path2",
        has_cls=getattr(model, "cls_token", None) is not None,
        pixels=False,
        name=name,
    )
