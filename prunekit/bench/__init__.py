"""Measured speed: dense, pruned, the ceiling that no pruner can beat, and how rivals do it, side by side in one run."""
