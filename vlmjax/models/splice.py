"""Visual tokens put in the places of a text that wait for them, without a scatter of floats in either direction."""

import jax
import jax.numpy as jnp

from ssmjax.ops._numerics.derivatives import own_backward
from ssmjax.shapes import Array, Bool, Float, Int

__all__ = ["place", "splice"]


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
    return _put(x, values, here, number, went)


def place(x: Float[Array, "*b d"], values: Float[Array, "n d"], places: Int[Array, "*b"]) -> Float[jax.Array, "*b d"]:
    """Replaces `x` by the value of the number at each place, where that is not negative.

    Args:
        x: (*b d).
        values: (n d), each used once at most.
        places: (*b) int.

    Returns:
        As `x`.

    >>> import jax.numpy as jnp
    >>> place(jnp.zeros((3, 1)), jnp.array([[5.0], [7.0]]), jnp.array([1, -1, 0])).tolist()
    [[7.0], [0.0], [5.0]]
    """
    places = jnp.asarray(places)
    flat, n = places.reshape(-1), values.shape[0]
    went = jnp.full((n,), -1).at[jnp.where(flat >= 0, flat, n)].set(jnp.arange(flat.size), mode="drop")
    return _put(x, values, places >= 0, jnp.maximum(flat, 0), went)


def _put(x, values, here, number, went):
    spread = own_backward("splice", _spread, _taken, values.astype(x.dtype), number, went).reshape(x.shape)
    return jnp.where(here.reshape(*here.shape, *(1,) * (x.ndim - here.ndim)), spread, x)


def _taken(values, number, went):
    """`values[number]`; only the places `went` are used, one for each value, or none where it is negative."""
    return jnp.take(values, number, axis=0, mode="clip")


_spread = jax.custom_vjp(_taken)


def _forward(values, number, went):
    return _spread(values, number, went), went


def _backward(went, gradient):
    back = jnp.take(gradient, jnp.maximum(went, 0), axis=0)
    return jnp.where((went >= 0).reshape(-1, *(1,) * (back.ndim - 1)), back, 0), None, None


_spread.defvjp(_forward, _backward)
