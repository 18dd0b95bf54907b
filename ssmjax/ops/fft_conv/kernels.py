"""Kernels put together from parts: two-sided ones, and products of kernels along axes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops import _checks
from ssmjax.shapes import Array, Float

__all__ = ["separable_kernel", "two_sided_kernel"]


def two_sided_kernel(
    causal: Float[Array, "*c k d"], anticausal: Float[Array, "*c m d"], *, inclusive: bool = False
) -> tuple[Float[jax.Array, "*c q d"], int]:
    """Returns one kernel from a causal half and a half that reads the future, for `fft_conv`.

        y_t = sum_j causal_j x_(t-j) + sum_j anticausal_j x_(t+j+1)        (bidirectional S4 and S4ND)
        y_t = sum_j causal_j x_(t-j) + sum_j anticausal_j x_(t+j)          with `inclusive` (bidirectional S5)

    The two schools differ in whether the half that runs backward sees the step itself, which the other half has seen.

    Args:
        causal: Taps at the offsets 0, 1, 2, ... into the past, (*c k d).
        anticausal: Taps into the future, (*c m d), the nearest first.
        inclusive: Whether the first anticausal tap is at offset 0, too; the two taps there are added.

    Returns:
        The kernel, (*c k+m d), with `inclusive` one tap shorter, and the `origin` for `fft_conv`.

    Raises:
        ValueError: A half is not a floating array of rank 2 or more, the halves have different channels or features,
            or one is empty though both have a tap at offset 0.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> kernel, origin = ssmjax.ops.two_sided_kernel(jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [4.0]]))
    >>> kernel[:, 0].tolist(), origin
    ([4.0, 3.0, 1.0, 2.0], 2)
    """
    where, halves = "two_sided_kernel", {"causal": causal, "anticausal": anticausal}
    errors.require_flags(where, inclusive=inclusive)
    _checks.require_arrays(where, **halves)
    _checks.require_dtype(where, halves, jnp.floating, "a real floating")
    for name, half in halves.items():
        if half.ndim < 2:
            raise errors.bad_shape(where, name, half, "of rank 2 or more, (*c k d)", "Time is second to last.")
    if causal.shape[:-2] != anticausal.shape[:-2] or causal.shape[-1] != anticausal.shape[-1]:
        wanted = f"of the channels and features of causal, {tuple(causal.shape)}"
        raise errors.bad_shape(where, "anticausal", anticausal, wanted)
    future = jnp.flip(anticausal, axis=-2)
    if not inclusive:
        return jnp.concatenate([future, causal], axis=-2), anticausal.shape[-2]
    if not (causal.shape[-2] and anticausal.shape[-2]):
        short = "causal" if not causal.shape[-2] else "anticausal"
        got, wanted = causal if short == "causal" else anticausal, "(*c k d) with k >= 1: both have a tap at offset 0"
        raise errors.bad_shape(where, short, got, wanted)
    middle = future[..., -1:, :] + causal[..., :1, :]
    return jnp.concatenate([future[..., :-1, :], middle, causal[..., 1:, :]], axis=-2), anticausal.shape[-2] - 1


def separable_kernel(kernels: Sequence[Float[Array, "r ..."]]) -> Float[jax.Array, "..."]:
    """Returns the kernel over several axes that is a sum of products of kernels along each, for `fft_conv_nd`.

        K_(i j ...) = sum_r K1_(r i) K2_(r j) ...

    section 3 of S4ND (https://arxiv.org/abs/2210.06583); a mean over r is the caller's factor.

    Args:
        kernels: For each spatial axis its kernels, (r *c k d), with a leading axis over the terms of the sum.

    Returns:
        (*c k1 k2 ... d).

    Raises:
        ValueError: There are no kernels, one is not a floating array of rank 3 or more, or they have different terms,
            channels or features.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> ssmjax.ops.separable_kernel([jnp.array([[[1.0], [2.0]]]), jnp.array([[[1.0], [3.0]]])])[..., 0].tolist()
    [[1.0, 3.0], [2.0, 6.0]]
    """
    where = "separable_kernel"
    first, *others = _checks.as_float_arrays(where, "kernels", kernels)
    if first.ndim < 3:
        remedy = "The sum is over its first axis: kernel[None] for a single product."
        raise errors.bad_shape(where, "kernels[0]", first, "of rank 3 or more, (r *c k d)", remedy)
    for i, kernel in enumerate(others, start=1):
        if kernel.ndim != first.ndim or kernel.shape[:-2] != first.shape[:-2] or kernel.shape[-1] != first.shape[-1]:
            wanted = f"all of the terms, channels and features of the first, {tuple(first.shape)}"
            raise errors.bad_shape(where, f"kernels[{i}]", kernel, wanted)
    lead = first.ndim - 2
    product = jnp.asarray(first)
    for axis, kernel in enumerate(others, start=1):
        shape = *kernel.shape[:lead], *[1] * axis, *kernel.shape[lead:]
        product = product[..., None, :] * kernel.reshape(shape)
    return product.sum(axis=0)
