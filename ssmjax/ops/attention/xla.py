"""Attention in XLA: two matrix products around a softmax in float32, with grouped heads and without copies of keys."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.export import is_symbolic_dim

from ssmjax.ops._numerics.dtypes import real_type

__all__ = ["attention_xla", "weights_xla"]


def weights_xla(q, k, allowed, bias, scale):
    """Returns the weights (b g r l m) in float32, where head `g r` reads the keys of group `g`."""
    real = real_type(q)
    grouped = rearrange(q, "b l (g r) p -> b l g r p", g=k.shape[2])
    logits = jnp.einsum("blgrp,bmgp->bgrlm", grouped, k.astype(q.dtype), preferred_element_type=real) * scale
    if bias is not None:
        logits = logits + _by_group(bias, k.shape[2]).astype(real)
    if allowed is not None:
        logits = jnp.where(_by_group(allowed, k.shape[2]), logits, -jnp.inf)
    # A row without any key has no peak and no sum: its weights are zero rather than NaN.
    peak = jax.lax.stop_gradient(logits.max(-1, keepdims=True, initial=-jnp.inf))
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(peak), peak, 0.0))
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


MOST = 2**28
"""The most logits that are held at once; beyond it, the queries are taken in blocks."""


def attention_xla(q, k, v, allowed, bias, scale):
    """Returns the outputs (b l h p) in the dtype of `q`."""
    b, l, h, _ = q.shape
    m = k.shape[1]
    # In `jax.export` a size may be a symbol, which is compared with no number: then the queries are taken at once.
    blocks = 1 if any(map(is_symbolic_dim, (b, l, m))) else min(l, -(-b * h * l * m // MOST))
    if blocks <= 1:
        return _block(q, k, v, allowed, bias, scale)
    size = -(-l // blocks)
    count = -(-l // size)

    def cut(x, axis):
        """(count ... size ...) where the array has an axis of queries, else None."""
        if x is None or x.shape[axis] == 1:
            return None
        widths = [(0, count * size - l if i == axis else 0) for i in range(x.ndim)]
        shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0)

    @jax.checkpoint  # the backward pass holds one block's logits, too
    def one(parts):
        q, own_allowed, own_bias = parts
        return _block(
            q, k, v, allowed if own_allowed is None else own_allowed, bias if own_bias is None else own_bias, scale
        )

    y = jax.lax.map(one, (cut(q, 1), cut(allowed, 2), cut(bias, 2)))
    return rearrange(y, "c b l h p -> b (c l) h p")[:, :l]


def _block(q, k, v, allowed, bias, scale):
    weights = weights_xla(q, k, allowed, bias, scale)
    y = jnp.einsum("bgrlm,bmgp->blgrp", weights.astype(v.dtype), v, preferred_element_type=weights.dtype)
    return rearrange(y, "b l g r p -> b l (g r) p").astype(q.dtype)


def _by_group(x, groups):
    """Splits the head axis of (b h l m) into groups; one of size 1 is for all heads."""
    if x.shape[1] == 1:
        return x[:, :, None]
    return rearrange(x, "b (g r) l m -> b g r l m", g=groups)
