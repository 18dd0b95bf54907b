"""Initial values of linear maps and short convolutions.

Equal arguments give the same initializer object: older Flax keeps it in a module's static definition, and two models of
one configuration would otherwise be two programs to compile.
"""

import functools

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

__all__ = ["fan_in_uniform", "uniform"]


@functools.cache
def uniform(bound: float) -> Initializer:
    """Uniform in `[-bound, bound]`.

    Mamba draws the weight of its step-size projection so, with `bound = r**-0.5` for a rank `r`, which keeps the
    variance of the step size independent of the rank (Mamba, section 3.6, https://arxiv.org/abs/2312.00752).

    Args:
        bound: The largest magnitude.

    Returns:
        An initializer `(key, shape, dtype) -> array`.

    >>> import jax
    >>> float(abs(uniform(0.5)(jax.random.key(0), (100,))).max()) <= 0.5
    True
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init


@functools.cache
def fan_in_uniform(scale: float = 1.0) -> Initializer:
    """Uniform in `[-s, s]` with `s = scale / sqrt(fan_in)`: PyTorch's default for a linear map, which Mamba keeps.

    Args:
        scale: A factor on the bound. Residual branches use `1 / sqrt(number of layers)`, as GPT-2 does
            (section 2.3 of "Language Models are Unsupervised Multitask Learners").

    Returns:
        An initializer `(key, shape, dtype) -> array`, for kernels of shape (in, out).

    >>> import jax
    >>> float(abs(fan_in_uniform()(jax.random.key(0), (4, 100))).max()) <= 0.5
    True
    """
    # variance = scale**2 / 3 / fan_in, which is that of a uniform with the bound scale / sqrt(fan_in)
    return jax.nn.initializers.variance_scaling(scale**2 / 3, "fan_in", "uniform")
