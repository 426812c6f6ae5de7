"""The command line: from words to a typed configuration, to a task. The only package that knows Hydra."""
