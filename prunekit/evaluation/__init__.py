"""Evaluation: dense against pruned on the same examples, with intervals, costs and pictures."""
