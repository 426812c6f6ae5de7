"""The embedded model: its construction, processor, training and gates. Nothing here is needed to prune."""
