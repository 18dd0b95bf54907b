"""Fewer visual tokens: selection, pooling, bipartite matching, density anchors, and the anchored soft merge.

Every method is a pure function with static shapes that returns a `MergeState`. Tokens are merged by a product with a
matrix of assignments: no scatter, so the same inputs give the same bits on a GPU, forward and backward.
"""

from vlmjax.ops.token_merge.anchored import anchored_merge, soft_anchored_merge, soft_top_k
from vlmjax.ops.token_merge.bipartite import bipartite_merge
from vlmjax.ops.token_merge.select import (
    attention_anchors,
    average_pool,
    density_anchors,
    density_scores,
    select_tokens,
)
from vlmjax.ops.token_merge.state import MergeState, by_position, merge_into, unmerge

__all__ = [
    "MergeState",
    "anchored_merge",
    "attention_anchors",
    "average_pool",
    "bipartite_merge",
    "by_position",
    "density_anchors",
    "density_scores",
    "merge_into",
    "select_tokens",
    "soft_anchored_merge",
    "soft_top_k",
    "unmerge",
]
