"""The definition of the kernel of DSS."""

import jax
import jax.numpy as jnp

__all__ = ["softmax_kernel_reference"]


def softmax_kernel_reference(W, A, dt, length, epsilon, over):
    """`K_l = Re sum_n W_n e^(l dt A_n) / sum_(j < over) e^(j dt A_n)` (r b h l), with all the powers written out.

    If `over` is None it is `length`, for one kernel, (b h l).
    """
    if over is None:
        return _softmax_kernel(W, A, dt, length, epsilon, length)
    return jax.vmap(lambda over: _softmax_kernel(W, A, dt, length, epsilon, over))(over)


def _softmax_kernel(W, A, dt, length, epsilon, over):
    l = jnp.arange(length, dtype=dt.dtype).reshape(1, 1, -1)
    x = jnp.where(l < over, (dt * A)[..., None] * l, 0)
    e = jnp.where(l < over, jnp.exp(x - jnp.max(x.real, axis=-1, keepdims=True)), 0)
    total = jnp.where(over == 0, 1, e.sum(-1, keepdims=True))
    size = total.real**2 + total.imag**2 + jnp.broadcast_to(epsilon, A.shape)[..., None]
    return jnp.einsum("bhn,hnl->bhl", W, e * total.conj() / size).real
