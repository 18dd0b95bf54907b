"""The definition of attention: one softmax over the keys for each query and head, in float32."""

import jax
import jax.numpy as jnp

from ssmjax.ops._numerics.dtypes import real_type

__all__ = ["attention_reference", "weights_reference"]


def weights_reference(q, k, allowed, bias, scale):
    """Returns the weights (b h l m), at least float32; arguments as `api._prepare` makes them.

    A query that may see no key has weights of zero, so attention gives it zeros.
    """
    real = real_type(q)
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)  # head j reads the keys of group j // (h / g)
    logits = scale * jnp.einsum("blhp,bmhp->bhlm", q.astype(real), k.astype(real), precision="highest")
    if bias is not None:
        logits = logits + bias.astype(real)
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    peak = jax.lax.stop_gradient(logits.max(-1, keepdims=True, initial=-jnp.inf))
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(peak), peak, 0.0))
    total = weights.sum(-1, keepdims=True)
    return weights / jnp.where(total == 0, 1.0, total)


def attention_reference(q, k, v, allowed, bias, scale):
    """Returns the outputs (b l h p) in the dtype of `q`."""
    weights = weights_reference(q, k, allowed, bias, scale)
    v = jnp.repeat(v, q.shape[2] // v.shape[2], axis=2).astype(weights.dtype)
    return jnp.einsum("bhlm,bmhp->blhp", weights, v, precision="highest").astype(q.dtype)
