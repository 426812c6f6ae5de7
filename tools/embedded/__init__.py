"""The embedded model: its construction, processor, training and gates. The shipped models do not need it."""
