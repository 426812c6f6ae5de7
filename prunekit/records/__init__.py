"""The run folder: what it holds a run of, whether that is finished, its rows, and who may write it."""
