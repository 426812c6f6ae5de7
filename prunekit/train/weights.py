"""The learned weights w_l, printed and drawn by layer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from prunekit.components.fusions import LearnedFusion, load_weights
from prunekit.families import family_of
from prunekit.pruning.pruner import Pruner

PICTURE = "fusion.png"


def show_weights(folder: Path, pruner: Pruner, model: nn.Module, copy_to: str | None = None) -> None:
    """Print the weights of a pruner with a learned fusion, and draw them to ``fusion.png`` where matplotlib is there.

    Weights are shown as shares of the sum of their absolutes below the last cut: only their ratios matter there.
    """
    if not isinstance(pruner.fusion, LearnedFusion) or pruner.fusion.weights is None:
        return
    layers = pruner.plan(family_of(model)).cut_layers
    shares = weight_shares(load_weights(pruner.fusion.weights), layers[-1])
    print("fusion weights by layer: " + " ".join(f"{layer}:{share:+.2f}" for layer, share in enumerate(shares)))
    if draw_weights(shares, layers, folder / PICTURE) and copy_to is not None:
        shutil.copyfile(folder / PICTURE, copy_to)


def weight_shares(weights: torch.Tensor, last_cut: int) -> list[float]:
    """Weights of the layers below the last cut over the sum of their absolutes."""
    used = weights[:last_cut]
    return (used / used.abs().sum().clamp(min=1e-12)).tolist()


def draw_weights(shares: list[float], cuts: tuple[int, ...], path: Path) -> bool:
    """Bars by layer, dashed lines at the uniform share and where the cuts are. Whether matplotlib was there to draw."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(shares)), shares, 0.7)
    axes.axhline(1 / len(shares), color="tab:gray", linestyle=":", label="uniform")
    for number, cut in enumerate(cuts):
        axes.axvline(cut - 0.5, color="black", linestyle="--", linewidth=0.8, label="cut" if number == 0 else None)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="decoder layer", ylabel="share of weight $w_l$", xticks=range(len(shares)))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return True
