"""Pure tensor maths at the bottom of the import order: it imports nothing of prunekit but ``prunekit.errors``.

Letters of shapes, and of the suffixes in code (``tokens_BND``): B samples, S slots of a sequence, N visual tokens (the
largest count in the batch, shorter samples padded), M entries of an index, D width of a token. A dot stands for any
further axes.

``prunekit.ops`` is the public front of this package.
"""
