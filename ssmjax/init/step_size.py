"""Initial step sizes.

The random part runs in JAX in float32, not in float64 on the host: layers are built under `jax.vmap` over one key a
layer, where a host function cannot draw. Over the usual range of step sizes the float32 result is within 1e-6 relative
of float64.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from ssmjax.shapes import Float, PRNGKey

__all__ = ["inverse_softplus", "log_step_size", "step_size_bias"]


def inverse_softplus(x: jax.typing.ArrayLike) -> jax.Array:
    """The inverse of softplus, `log(exp(x) - 1)`, written so that a small `x` loses no digits.

    Args:
        x: Positive values, of any shape.

    Returns:
        As `x`, with `softplus(result) == x`.

    >>> import jax
    >>> round(float(jax.nn.softplus(inverse_softplus(1e-3))), 6)
    0.001
    """
    x = jnp.asarray(x)
    return x + jnp.log(-jnp.expm1(-x))


def log_step_size(key: PRNGKey, shape: tuple[int, ...], minimum: float, maximum: float) -> Float[jax.Array, "..."]:
    """The logarithms of step sizes that are log-uniform in `[minimum, maximum]`, float32.

    Args:
        key: A random key.
        shape: The shape of the result.
        minimum: The smallest step size.
        maximum: The largest step size.

    >>> import jax
    >>> log_step_size(jax.random.key(0), (3,), 0.1, 0.1).round(3).tolist()
    [-2.303, -2.303, -2.303]
    """
    return jax.random.uniform(key, shape, minval=math.log(minimum), maxval=math.log(maximum))


@functools.cache
def step_size_bias(minimum: float = 1e-3, maximum: float = 0.1, floor: float = 1e-4) -> Initializer:
    """A bias `b` for which `softplus(b)` is log-uniform in `[minimum, maximum]`, and at least `floor`.

    Section 3.6 of Mamba (https://arxiv.org/abs/2312.00752), after "How to Train Your HiPPO" (https://arxiv.org/abs/2206.12037).

    Args:
        minimum: The smallest step size.
        maximum: The largest step size.
        floor: Step sizes below it are raised to it.

    Returns:
        An initializer `(key, shape, dtype) -> array`.

    >>> import jax
    >>> dt = jax.nn.softplus(step_size_bias(0.01, 0.1)(jax.random.key(0), (1000,)))
    >>> bool((dt > 0.0099).all() and (dt < 0.1001).all())
    True
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        log_dt = log_step_size(key, shape, minimum, maximum)
        return inverse_softplus(jnp.maximum(jnp.exp(log_dt), floor)).astype(dtype)

    return init
