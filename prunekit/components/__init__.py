"""The built-in components; importing this registers them."""

from prunekit.components import compressors, fusions, recycle, reducers, schedules, scorers, selectors  # noqa: F401
