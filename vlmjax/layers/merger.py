"""The learned part of the anchored merge: small heads on top of the best rule that needs no training."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ssmjax import errors
from ssmjax.layers import LayerNorm
from ssmjax.layers.common.parameters import parameter
from ssmjax.shapes import Array, Float
from vlmjax.layers.transformer import linear
from vlmjax.ops.token_merge import (
    MergeState,
    anchored_merge,
    density_scores,
    select_tokens,
    soft_anchored_merge,
    soft_top_k,
)
from vlmjax.ops.token_merge.select import top_tokens, unit
from vlmjax.ops.token_merge.state import check_budget, merge_into

__all__ = ["Merger", "Resampler"]

WAVES = 4
"""Frequencies of the position encoding along each axis."""

LARGEST_LOG_WEIGHT = 5.0


class Merger(nnx.Module):
    """Which tokens are anchors, and which are alike: residual heads that start at density anchors.

        h_i = mlp([x_i, place_i]);   e_i = unit(unit(x_i) + D_e h_i);   w_i = exp(D_w h_i)
        R, D = density(e, D_g h);    u_i = a log R_i + b log D_i + D_v h_i

    All D are zero at first, so an untrained merger is `density_anchors`. One set of parameters serves every budget, as
    anchors are the first of a ranking.

    Args:
        d_model: The width of a token.
        grid: Rows and columns of the tokens, whose places the heads see; None for no places.
        hidden: The width of `h`.
        prune: Drops what is no anchor in place of merging it, with the same heads: learned selection, to compare with.
        residual: Without it, scores are `D_v h` alone and similarities those of `D_e h`: an ablation.
        adapt: Adds to each merged token a small network's output, `y + D_o gelu(W [norm y, log size])`, zero at first:
            a mean of tokens is not a token that the language model has seen.
        rngs: Source of the initial values.

    Raises:
        ValueError: The number of tokens is not that of the grid.

    >>> import jax.numpy as jnp
    >>> merger = Merger(8, grid=(3, 4), rngs=nnx.Rngs(0))
    >>> state = merger(jnp.ones((2, 12, 8)), 5)
    >>> state.tokens.shape, state.size.sum(1).tolist()
    ((2, 5, 8), [12.0, 12.0])
    """

    def __init__(
        self,
        d_model: int,
        *,
        grid: tuple[int, int] | None = None,
        hidden: int = 64,
        prune: bool = False,
        residual: bool = True,
        adapt: bool = False,
        rngs: nnx.Rngs,
    ):
        errors.require_flags("Merger", prune=prune, residual=residual, adapt=adapt)
        self.grid, self.prune, self.residual = grid, prune, residual
        self.norm = LayerNorm(d_model)
        self.up = linear(d_model + (0 if grid is None else 4 * WAVES), hidden, use_bias=True, dtype=None, rngs=rngs)
        scale = 0.0 if residual else 1.0
        options = dict(use_bias=False, dtype=None, rngs=rngs)
        self.to_embedding = linear(hidden, d_model, scale=scale, **options)
        self.to_score = linear(hidden, 1, scale=scale, **options)
        self.to_gain = linear(hidden, 1, scale=0.0, **options)
        self.to_weight = linear(hidden, 1, scale=0.0, **options)
        self.mix = parameter(jnp.ones((2,)), "scale")
        self.adapter = Adapter(d_model, hidden, rngs=rngs) if adapt else None

    def __call__(self, x: Float[Array, "b n d"], m: int) -> MergeState:
        """Merges down to `m` tokens: the hard form, for use.

        Args:
            x: (b n d).
            m: The budget, a Python int from 1 to n.
        """
        e, score, weight = self.heads(x)
        if self.prune:
            m = check_budget("Merger", m, x.shape[1])
            return select_tokens(x, top_tokens(score, m))
        return self._adapted(anchored_merge(x, e, score, m, weight=weight))

    def soft(
        self, x: Float[Array, "b n d"], m: int | Array, *, temperature: float | Array, sharpness: float | Array
    ) -> MergeState:
        """The soft form, for training: n outputs, of which `m` have a size.

        Args:
            x: (b n d).
            m: The budget; it may be traced.
            temperature: The temperature of the choice of anchors, in standard deviations of the scores.
            sharpness: The sharpness of the assignment.
        """
        e, score, weight = self.heads(x)
        if not self.prune:
            options = dict(temperature=temperature, sharpness=sharpness, weight=weight)
            return self._adapted(soft_anchored_merge(x, e, score, m, **options))
        alpha = soft_top_k(score, m, temperature)
        n = x.shape[1]
        places = jnp.broadcast_to(jnp.arange(n)[None], alpha.shape)
        whole = jnp.broadcast_to(jnp.eye(n)[None], (x.shape[0], n, n))
        return merge_into(x, whole, places)._replace(size=alpha)

    def heads(self, x: Float[Array, "b n d"]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What is compared (b n d), of length one; the standardized scores (b n); the weights of the means (b n)."""
        width = self.norm.scale.shape[-1]
        if x.ndim != 3 or x.shape[-1] != width:
            raise errors.bad_shape("Merger", "x", x, f"(b n {width}), of the width that the merger was made for")
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        h = self.norm(x)
        if self.grid is not None:
            if x.shape[1] != self.grid[0] * self.grid[1]:
                wanted = f"(b n d) with n = {self.grid[0] * self.grid[1]}, the tokens of the grid"
                raise errors.bad_shape("Merger", "x", x, wanted)
            places = jnp.broadcast_to(jnp.asarray(_places(self.grid))[None], (*x.shape[:2], 4 * WAVES))
            h = jnp.concatenate([h, places], axis=-1)
        h = jax.nn.gelu(self.up(h))
        learned = self.to_score(h)[..., 0]
        if self.residual:
            e = unit(unit(x) + self.to_embedding(h))
            R, D = density_scores(e, self.to_gain(h)[..., 0])
            a, b = self.mix[...][0], self.mix[...][1]
            score = a * jnp.log(R) + b * jnp.log(jnp.maximum(D, 1e-6)) + learned
        else:
            e, score = unit(self.to_embedding(h)), learned
        spread = jnp.sqrt(score.var(-1, keepdims=True) + 1e-12)
        score = (score - score.mean(-1, keepdims=True)) / spread
        log_weight = jnp.clip(self.to_weight(h)[..., 0], -LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT)
        return e, score, jnp.exp(log_weight)

    def _adapted(self, state: MergeState) -> MergeState:
        return state if self.adapter is None else state._replace(tokens=self.adapter(state.tokens, state.size))


class Adapter(nnx.Module):
    """What `Merger(adapt=True)` adds to merged tokens; see there.

    Args:
        d_model: The width of a token.
        hidden: That of the layer between.
        rngs: Source of the initial values.
    """

    def __init__(self, d_model: int, hidden: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(d_model)
        self.up = linear(d_model + 1, hidden, use_bias=True, dtype=None, rngs=rngs)
        self.down = linear(hidden, d_model, use_bias=True, scale=0.0, dtype=None, rngs=rngs)

    def __call__(self, y: Float[Array, "b m d"], size: Float[Array, "b m"]) -> Float[jax.Array, "b m d"]:
        """`y` and what is added to it; no token has a size below a hundredth here."""
        h = jnp.concatenate([self.norm(y).astype(jnp.float32), jnp.log(jnp.maximum(size, 0.01))[..., None]], axis=-1)
        return y + self.down(jax.nn.gelu(self.up(h))).astype(y.dtype)


class Resampler(nnx.Module):
    """Learned queries that read the tokens by attention: the trained compression to compare with (Perceiver's).

    Budgets are nested as in MQT (https://arxiv.org/abs/2405.19315): a budget of `m` takes the first `m` queries.

    Args:
        d_model: The width of a token.
        queries: The largest budget.
        tokens: How many tokens there are; they get learned positions as keys.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> Resampler(8, queries=4, tokens=12, rngs=nnx.Rngs(0))(jnp.ones((2, 12, 8)), 3).tokens.shape
    (2, 3, 8)
    """

    def __init__(self, d_model: int, *, queries: int, tokens: int, rngs: nnx.Rngs):
        draw = initializers.normal(0.02)
        self.queries = parameter(draw(rngs.params(), (queries, d_model)) * 50 / np.sqrt(d_model), "token")
        self.places = parameter(draw(rngs.params(), (tokens, d_model)) * 50 / np.sqrt(d_model), "position")
        self.norm = LayerNorm(d_model)
        self.to_key = linear(d_model, d_model, use_bias=False, dtype=None, rngs=rngs)
        self.to_value = linear(d_model, d_model, use_bias=False, dtype=None, rngs=rngs)
        self.up = linear(d_model, 4 * d_model, use_bias=True, dtype=None, rngs=rngs)
        self.down = linear(4 * d_model, d_model, use_bias=True, scale=0.0, dtype=None, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], m: int) -> MergeState:
        """The outputs of the first `m` queries, of equal size; each stands at the mean place of what it reads."""
        m = check_budget("Resampler", m, self.queries.shape[0])
        keys = self.to_key(self.norm(x)) + self.places[...][None]
        weights = jax.nn.softmax(jnp.einsum("md,bnd->bmn", self.queries[...][:m], keys) * x.shape[-1] ** -0.5, axis=-1)
        y = jnp.einsum("bmn,bnd->bmd", weights, x + self.to_value(self.norm(x)))
        y = y + self.down(jax.nn.gelu(self.up(y)))
        n = x.shape[1]
        places = jnp.broadcast_to(jnp.asarray((np.arange(m) * n) // m + n // (2 * m))[None], (x.shape[0], m))
        return MergeState(y, jnp.ones(places.shape, jnp.float32), places, weights)


def _places(grid: tuple[int, int]) -> np.ndarray:
    """Sines and cosines of rows and columns: (n 16) float32."""
    waves = np.pi * 2.0 ** np.arange(WAVES) / 2
    axes = []
    for axis, side in enumerate(grid):
        line = (np.arange(side) + 0.5) / side
        angle = line[:, None] * waves[None]
        part = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
        axes.append(np.repeat(part, grid[1], axis=0) if axis == 0 else np.tile(part, (grid[0], 1)))
    return np.concatenate(axes, axis=-1).astype(np.float32)
