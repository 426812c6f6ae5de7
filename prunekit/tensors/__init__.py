"""Pure tensor maths at the bottom of the import order: it imports nothing of prunekit but ``prunekit.errors``.

The legend of shapes, and of the suffixes in code (``tokens_BND``), stands at the top of ``sequences``. N is the largest
count of visual tokens in the batch, shorter samples padded; a dot stands for any further axes.

``prunekit.ops`` is the public front of this package.
"""
