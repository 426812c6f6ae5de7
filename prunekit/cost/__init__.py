"""What a vision-language model costs: multiply-accumulates, FLOPs, KV-cache bytes and tokens of each layer, by formula.

``estimate(shape_of(config), pruner, visual=576, text=64)`` needs no weights and runs nothing. The four conventions are
in ``formulas``; ``flop_counter`` counts a real run to compare with.
"""

from prunekit.cost.counting import flop_counter
from prunekit.cost.encoder import encoder_macs, encoder_saving
from prunekit.cost.estimate import Cost, Outline, estimate, outline
from prunekit.cost.formulas import CONVENTIONS, layer_macs, stack_macs
from prunekit.cost.prefill import PrefillCost, prefill_cost, vision_macs
from prunekit.cost.reading import shape_of
from prunekit.cost.shapes import ModelShape, Stack, Tower

__all__ = [
    "CONVENTIONS",
    "Cost",
    "ModelShape",
    "Outline",
    "PrefillCost",
    "Stack",
    "Tower",
    "encoder_macs",
    "encoder_saving",
    "estimate",
    "flop_counter",
    "layer_macs",
    "outline",
    "prefill_cost",
    "shape_of",
    "stack_macs",
    "vision_macs",
]
