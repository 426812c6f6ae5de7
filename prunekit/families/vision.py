"""Vision encoders: where a model keeps its blocks, their queries and keys, its CLS token, what the projector reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.families.base import Family
from prunekit.families.implementation import implementation_of
from prunekit.families.support import SUPPORT, VISION_ENCODERS, PatchLayout, support_of
from prunekit.families.wrappers import unwrapped


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
        group: patches that the projector joins into one visual token.
        projector: the module that maps patches to visual tokens; None for an encoder alone.
        norm, tail: names, in a block, of the norm before the MLP and of the last module of the MLP's branch.
        packed: images stand behind each other in one sequence without a batch axis.
        tiled: images are cut into tiles.
        pixels: whether it takes images of other sizes, with interpolated positions.
    """

    module: nn.Module
    blocks: Sequence[nn.Module]
    attentions: tuple[nn.Module, ...]
    prefix: int
    read: int
    patches: int | None
    grid: tuple[int, int] | None
    group: int
    projector: nn.Module | None
    norm: str
    tail: str
    has_cls: bool
    packed: bool = False
    tiled: bool = False
    pixels: bool = True
    name: str = ""

    @property
    def implementation(self) -> str:
        """The attention implementation's name of the moment; "" where it is not transformers' interface (timm)."""
        config = getattr(self.attentions[0], "config", None)
        return "" if config is None else implementation_of(config)

    def refuses_cuts(self) -> str | None:
        """Why tokens cannot go inside this encoder, None if they can."""
        if self.group > 1:
            return f"its projector joins {self.group} neighbouring patches, of which none may be missing"
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
    projector = family.projector or getattr(family.core, "aligner", None)
    if patches is None or tower is None or projector is None:
        names = sorted(name for name, row in SUPPORT.items() if row.patches is not None)
        raise _unknown(name, f"known for {', '.join(names)}")
    return _packed(family, tower) if patches.packed else _plain(family, patches, tower, projector)


def _unknown(name: str, why: str) -> PrunekitError:
    return PrunekitError(f"'{name}': which patches stand behind each visual token is not known ({why})")


def _plain(family: Family, patches: PatchLayout, tower: nn.Module, projector: nn.Module) -> VisionTower:
    """CLIP or SigLIP, read by a projector that maps patch by patch."""
    config: Any = tower.config
    name = family.model_type
    encoder = VISION_ENCODERS.get(config.model_type)
    if encoder is None or not encoder.clip_layout:
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
    layers: Any = next(m.layers for m in tower.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList))
    blocks: list[Any] = [unwrapped(layer) for layer in layers]
    read = layer % (len(blocks) + 1) - 1
    if read < 0:
        raise _unknown(name, "its projector reads the patch embedding")
    side = config.image_size // config.patch_size
    return VisionTower(
        module=tower,
        blocks=blocks,
        attentions=tuple(unwrapped(block.self_attn) for block in blocks),
        prefix=prefix,
        read=read,
        patches=side * side,
        grid=(side, side),
        group=1,
        projector=projector,
        norm="layer_norm2",
        tail="mlp",
        has_cls=bool(prefix),
        tiled=patches.tiled,
        name=name,
    )


def _packed(family: Family, tower: Any) -> VisionTower:
    """A ViT of the Qwen-VL family."""
    blocks: list[Any] = [unwrapped(block) for block in tower.blocks]
    return VisionTower(
        module=tower,
        blocks=blocks,
        attentions=tuple(unwrapped(block.attn) for block in blocks),
        prefix=0,
        read=len(blocks) - 1,
        patches=None,
        grid=None,
        group=tower.spatial_merge_size**2,
        projector=tower.merger,
        norm="norm2",
        tail="mlp",
        has_cls=False,
        packed=True,
        pixels=False,
        name=family.model_type,
    )


def window_order(tower: Any, grids: torch.Tensor) -> torch.Tensor | None:
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
        group=1,
        projector=None,
        norm="norm2",
        tail="drop_path2",
        has_cls=getattr(model, "cls_token", None) is not None,
        pixels=False,
        name=name,
    )
