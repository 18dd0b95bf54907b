"""Visual tokens put in the places of a text that wait for them, without a scatter in either direction."""

import jax
import jax.numpy as jnp

from ssmjax.shapes import Array, Bool, Float

__all__ = ["splice"]


def splice(
    x: Float[Array, "b l *d"], values: Float[Array, "n *d"], here: Bool[Array, "b l"]
) -> Float[jax.Array, "b l *d"]:
    """Replaces `x` where `here` by the values, in order, row by row.

    The gradient of the values is a gather, too: each knows where it went. So it is the same, bit for bit, in every run.

    Args:
        x: (b l *d).
        values: (n *d), n as many as `here` is True.
        here: (b l).

    Returns:
        As `x`.

    >>> import jax.numpy as jnp
    >>> splice(jnp.zeros((1, 3)), jnp.array([5.0, 7.0]), jnp.array([[True, False, True]])).tolist()
    [[5.0, 0.0, 7.0]]
    """
    flat = here.reshape(-1)
    number = jnp.maximum(jnp.cumsum(flat) - 1, 0)
    (went,) = jnp.nonzero(flat, size=values.shape[0], fill_value=0)
    spread = _spread(values.astype(x.dtype), number, went).reshape(x.shape)
    return jnp.where(here.reshape(*here.shape, *(1,) * (x.ndim - 2)), spread, x)


@jax.custom_vjp
def _spread(values, number, went):
    """`values[number]`; only the places `went` are used, one for each value."""
    return jnp.take(values, number, axis=0, mode="clip")


def _forward(values, number, went):
    return _spread(values, number, went), went


def _backward(went, gradient):
    return jnp.take(gradient, went, axis=0), None, None


_spread.defvjp(_forward, _backward)
