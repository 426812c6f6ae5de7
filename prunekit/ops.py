"""The tensor maths that methods share, documented with shapes: ``prunekit.ops.top_k(scores, count, among)``.

All are pure functions of tensors, and differentiable where a mathematician would say so. Letters of shapes: B samples,
S slots of a sequence, N visual tokens (the largest count in the batch, shorter samples padded), M entries of an index,
D width of a token. A mask of tokens is a bool tensor, True for those that count.

=========================  ============================================================================================
``gather_tokens``          tokens [B, S, .] at an index [B, M]: [B, M, .]
``ragged_index``           the positions of a mask's True entries, padded: index and valid, [B, M] each
``scatter_where``          valid values [B, M, .] at an index [B, M] of a new sequence: [B, S, .]
``put_where``              the same over a sequence that exists
``top_k``                  the highest scores of each sample, a count for each: bool [B, N]
``ranks``                  0 for a sample's highest score, 1 for the next: long [B, N]
``stride``                 evenly spaced tokens, a count for each sample: bool [B, N]
``cosine``                 of all tokens to all others, [B, N, M]
``nearest``                for each token the most similar of some candidates: long [B, N]
``cover``                  the tokens that cover most of some things, greedily: bool [B, N]
``marginal_relevance``     important tokens that are unlike each other, greedily: bool [B, N]
``greedy_determinant``     the tokens that raise a kernel's determinant most, greedily: bool [B, N]
``merge_into``             the size-weighted mean of kept tokens and what goes into them
``sum_into``               weighted sums of tokens by target
``density_peaks``          how well tokens would do as centres of clusters: [B, N]
``group_numbers``          the groups of tokens that agree in some numbers: long [B, N]
``group_sums``             sums over the tokens of each group: [B, G, .]
``group_means``            means over the tokens of each group: [B, G, D]
``apportion``              a whole number shared among groups by weight, none beyond its limit: long [B, G]
``cell_grid``              the grid of an image's proportions with about so many cells
=========================  ============================================================================================
"""

from prunekit.tensors.coverage import cover, greedy_determinant, marginal_relevance
from prunekit.tensors.grids import cell_grid
from prunekit.tensors.groups import apportion, group_means, group_numbers, group_sums
from prunekit.tensors.indexing import gather_tokens, put_where, ragged_index, scatter_where
from prunekit.tensors.merging import cosine, density_peaks, merge_into, nearest, sum_into
from prunekit.tensors.ranking import ranks, stride, top_k

__all__ = [
    "apportion",
    "cell_grid",
    "cosine",
    "cover",
    "density_peaks",
    "gather_tokens",
    "greedy_determinant",
    "group_means",
    "group_numbers",
    "group_sums",
    "marginal_relevance",
    "merge_into",
    "nearest",
    "put_where",
    "ragged_index",
    "ranks",
    "scatter_where",
    "stride",
    "sum_into",
    "top_k",
]
