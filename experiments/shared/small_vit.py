"""A small vision transformer whose tokens can be merged after its first block, and its pruned form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ssmjax.layers import LayerNorm
from ssmjax.layers.common.parameters import parameter
from vlmjax.layers import BlockSize, Merger, TransformerBlock
from vlmjax.layers.transformer import linear
from vlmjax.ops import MergeState, bipartite_merge, density_anchors, select_tokens

__all__ = ["METHODS", "SmallViT", "Size", "flops", "merge_flops", "pruned", "pruned_size"]

HIDDEN = 32
"""The width of the merger's heads."""

METHODS = ("slicing", "tome", "density", "ours")
"""How tokens become fewer after the first block."""


@dataclasses.dataclass(frozen=True)
class Size:
    """The model's sizes: `side` patches of `patch` pixels along each side, blocks of `block`'s size."""

    block: BlockSize = BlockSize(64, 4, 256)
    depth: int = 4
    side: int = 7
    patch: int = 4
    classes: int = 10

    @property
    def tokens(self) -> int:
        """The patches of an image."""
        return self.side**2


class SmallViT(nnx.Module):
    """Patches, positions, blocks, and the mean of the tokens, each counted by its size.

    Args:
        size: The sizes.
        rngs: Source of the initial values.
    """

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        self.size = size
        d = size.block.d_model
        self.patches = linear(size.patch**2, d, use_bias=True, dtype=None, rngs=rngs)
        self.positions = parameter(0.02 * jax.random.normal(rngs.params(), (size.tokens, d)), "position")
        self.blocks = nnx.data([TransformerBlock(size.block, rngs=rngs) for _ in range(size.depth)])
        self.norm = LayerNorm(d)
        self.head = linear(d, size.classes, use_bias=True, dtype=None, rngs=rngs)
        self.merger = Merger(d, grid=(size.side, size.side), hidden=HIDDEN, rngs=rngs)

    def __call__(self, images: jax.Array, method: str | None = None, m: int | None = None, soft: Any = None):
        """Logits (b v), and the merge if there is one.

        Args:
            images: (b 28 28), from 0 to 1.
            method: One of `METHODS`, or None for all tokens.
            m: The budget.
            soft: (temperature, sharpness) of ours in its soft form.
        """
        p = self.size.patch
        x = self.patches(rearrange(images, "b (y p) (x q) -> b (y x) (p q)", p=p, q=p)) + self.positions[...][None]
        x = self.blocks[0](x)[0]
        state, bias = None, None
        if method is not None:
            state = self.merge(x, method, m, soft)
            x = state.tokens
            bias = None if method == "slicing" else jnp.log(jnp.maximum(state.size, 1e-9))
        for block in self.blocks[1:]:
            x = block(x, bias=bias)[0]
        share = jnp.ones(x.shape[:2]) if state is None else state.size
        pooled = jnp.einsum("bn,bnd->bd", share / share.sum(-1, keepdims=True), self.norm(x))
        return self.head(pooled), state

    def merge(self, x: jax.Array, method: str, m: int, soft: Any = None) -> MergeState:
        """Fewer tokens by one of the methods."""
        n = x.shape[1]
        if method == "slicing":
            return select_tokens(x, jnp.asarray(np.arange(m) * n // m + n // (2 * m)))
        if method == "tome":
            return bipartite_merge(x, m)
        if method == "density":
            return density_anchors(x, m)
        if soft is not None:
            return self.merger.soft(x, m, temperature=soft[0], sharpness=soft[1])
        return self.merger(x, m)


def flops(size: Size, m: int | None = None, method: str | None = None) -> int:
    """Operations of one image: the blocks before a merge with all tokens, those behind with `m`; one product is two."""
    n, block = size.tokens, size.block
    inner = block.heads * block.head_width

    def of_block(t: int) -> int:
        return 2 * t * (4 * block.d_model * inner + 2 * block.d_model * block.d_mlp) + 4 * t * t * inner

    total = 2 * n * size.patch**2 * block.d_model + 2 * block.d_model * size.classes + of_block(n)
    return total + (size.depth - 1) * of_block(m or n) + (0 if m is None else merge_flops(size, m, method))


def merge_flops(size: Size, m: int, method: str | None) -> int:
    """Operations of the merge itself."""
    n, d = size.tokens, size.block.d_model
    if method == "slicing":
        return 0
    if method == "tome":
        total, left = 0, n
        while left > m:
            kept = max(m, left - left // 2)
            total += 2 * (left - left // 2) * (left // 2) * d + 2 * kept * left * d
            left = kept
        return total
    pairs = 2 * n * n * d + 2 * m * n * d + 2 * m * n * d  # who is alike, whom to join, the means
    heads = 2 * n * (d + 16) * HIDDEN + 2 * n * HIDDEN * (d + 3) if method == "ours" else 0
    return pairs + heads


def pruned_size(size: Size, target: float) -> Size:
    """The widest model whose every width is the same share of the whole one's, at no more than so many operations."""
    best = None
    for p in range(2, size.block.head_width + 1):
        d = p * size.block.heads
        block = dataclasses.replace(size.block, d_model=d, d_mlp=4 * d, head_dim=p)
        smaller = dataclasses.replace(size, block=block)
        if flops(smaller) <= target:
            best = smaller
    assert best is not None
    return best


def pruned(model: SmallViT, size: Size) -> SmallViT:
    """A narrower model with the channels of the whole one that have the largest weights: structured pruning."""
    small = SmallViT(size, rngs=nnx.Rngs(0))
    whole = model.size.block
    width = np.linalg.norm(np.asarray(model.patches.kernel[...]), axis=0)
    for block in model.blocks:
        width = width + np.linalg.norm(np.asarray(block.attn.out.kernel[...]), axis=0)
        width = width + np.linalg.norm(np.asarray(block.mlp.down.kernel[...]), axis=0)
    channels = np.sort(np.argsort(-width)[: size.block.d_model])
    _take(small.patches, model.patches, None, channels)
    small.positions[...] = model.positions[...][:, channels]
    _take_norm(small.norm, model.norm, channels)
    _take(small.head, model.head, channels, None)
    for ours, theirs in zip(small.blocks, model.blocks, strict=True):
        scores = rearrange(np.asarray(theirs.attn.q.kernel[...]), "d (h p) -> h p d", h=whole.heads)
        scores = scores * rearrange(np.asarray(theirs.attn.k.kernel[...]), "d (h p) -> h p d", h=whole.heads)
        best = np.sort(np.argsort(-np.abs(scores).sum(-1), axis=1)[:, : size.block.head_width], axis=1)
        inner = (best + np.arange(whole.heads)[:, None] * whole.head_width).reshape(-1)
        for name in ("q", "k", "v"):
            _take(getattr(ours.attn, name), getattr(theirs.attn, name), channels, inner)
        _take(ours.attn.out, theirs.attn.out, inner, channels)
        importance = np.linalg.norm(np.asarray(theirs.mlp.up.kernel[...]), axis=0)
        hidden = np.sort(np.argsort(-importance)[: size.block.d_mlp])
        _take(ours.mlp.up, theirs.mlp.up, channels, hidden)
        _take(ours.mlp.down, theirs.mlp.down, hidden, channels)
        for name in ("norm1", "norm2"):
            _take_norm(getattr(ours, name), getattr(theirs, name), channels)
    return small


def _take(ours: nnx.Linear, theirs: nnx.Linear, rows: np.ndarray | None, columns: np.ndarray | None) -> None:
    kernel, bias = np.asarray(theirs.kernel[...]), np.asarray(theirs.bias[...])
    kernel = kernel if rows is None else kernel[rows]
    ours.kernel[...] = jnp.asarray(kernel if columns is None else kernel[:, columns])
    ours.bias[...] = jnp.asarray(bias if columns is None else bias[columns])


def _take_norm(ours: LayerNorm, theirs: LayerNorm, channels: np.ndarray) -> None:
    ours.scale[...], ours.bias[...] = theirs.scale[...][channels], theirs.bias[...][channels]
