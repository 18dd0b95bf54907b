"""Pure functions of arrays: merging visual tokens, and what `ssmjax.ops` has of attention."""

from ssmjax.ops import attention
from vlmjax.ops.token_merge import (
    MergeState,
    anchored_merge,
    attention_anchors,
    average_pool,
    bipartite_merge,
    by_position,
    density_anchors,
    density_scores,
    merge_into,
    select_tokens,
    soft_anchored_merge,
    soft_top_k,
    unmerge,
)

__all__ = [
    "MergeState",
    "anchored_merge",
    "attention",
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
