"""The definition of the kernel of DSS."""

import jax
import jax.numpy as jnp

from ssmjax.ops._numerics.dtypes import common_type

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
    x = jnp.where(l < over, (dt.astype(A.dtype) * A)[..., None] * l.astype(A.dtype), 0)
    e = jnp.where(l < over, jnp.exp(x - jnp.max(x.real, axis=-1, keepdims=True).astype(x.dtype)), 0)
    total = jnp.where(over == 0, 1, e.sum(-1, keepdims=True))
    size = total.real**2 + total.imag**2 + jnp.broadcast_to(epsilon, A.shape)[..., None]
    share = e * total.conj() / size.astype(total.dtype)
    number = common_type(W, share)
    return jnp.einsum("bhn,hnl->bhl", W.astype(number), share.astype(number)).real
