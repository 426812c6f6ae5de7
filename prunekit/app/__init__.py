"""The explorer: one question about one picture, dense and pruned side by side, in a browser."""
