"""The built-in components; importing this registers them."""

from prunekit.components import (  # noqa: F401
    compressors,
    fusions,
    grouped,
    outliers,
    recycle,
    reducers,
    schedules,
    scorers,
    selectors,
    sites,
    video,
)
