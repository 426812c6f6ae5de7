"""Pruners: five components and a budget, planned on a model, applied to it, saved, and named as published methods."""
