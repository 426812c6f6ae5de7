"""VTW: from one layer on no visual token stays."""

from __future__ import annotations

import prunekit

# Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference (AAAI 2025,
# https://arxiv.org/abs/2405.05803). All of them go, so nothing is scored; by default before the middle of the depth
# (layer 16 of 32), and schedule.layer names another.
prunekit.compose("vtw", scorer="random", fusion="single", schedule="withdraw", positions="keep")
