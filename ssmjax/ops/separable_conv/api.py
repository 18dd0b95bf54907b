"""The public separable convolution: checks, choice of implementation, documentation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops import _checks, _half, backend
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops.separable_conv.reference import separable_conv_reference
from ssmjax.ops.separable_conv.xla import separable_conv_xla
from ssmjax.shapes import Array, Float

__all__ = ["separable_conv"]

IMPLEMENTATIONS = {"xla": separable_conv_xla, "reference": separable_conv_reference}


@_half.rounded_once("x")
def separable_conv(
    x: Float[Array, "b ..."],
    kernels: Sequence[Float[Array, "r c _ d"]],
    D: Float[Array, "c d"] | None = None,
    *,
    origin: Sequence[int] | None = None,
    implementation: str = "auto",
) -> Float[jax.Array, "b c ..."]:
    """Computes the convolution of every feature with a sum of products of kernels along each axis.

        y_t = sum_j K_j x_(t - j + origin) + D x_t,    K_(i j ...) = sum_r K1_(r i) K2_(r j) ...,

    the convolution of S4ND (section 3, https://arxiv.org/abs/2210.06583). It is `fft_conv_nd` with the kernel of
    `separable_kernel`, but one axis is handled after the other and the kernel over all axes never exists: in matrix
    products along axes of up to a few hundred, the lengths of images, by transforms along longer ones.

    Where it transforms, it is causal up to rounding, as `fft_conv` is; `implementation="reference"` exactly so, and a
    matrix product passes on a NaN, too.

    Computed in float32 whatever the dtype of `x` (float64 if it is float64), deterministic. Reverse mode only where it
    transforms; `implementation="reference"` has forward mode, too.

    Args:
        x: Input, (b *s d), any float dtype.
        kernels: For each of the axes *s its kernels, (r c k d): r terms of the sum, c outputs of each feature.
        D: Skip weight, (c d).
        origin: For each axis the index into the kernel of its tap at offset zero; zeros, which is causal along every
            axis, by default.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        y, (b c *s d), in the dtype of `x`.

    Raises:
        ValueError: A shape, a dtype or an origin is wrong.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1, 2, 1))
    >>> ssmjax.ops.separable_conv(x, [kernel, kernel])[0, 0, :, :, 0].round(3).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    kernels = _checks.as_float_arrays("separable_conv", "kernels", kernels)
    origin = _check(x, kernels, D, origin)
    empty = "an axis has size 0" if any(0 in v.shape for v in (x, *kernels)) else None
    chosen = backend.resolve("separable_conv", implementation, {"xla": empty, "reference": None})
    number = real_type(x)
    inside = jnp.asarray(x, number)
    y = IMPLEMENTATIONS[chosen](inside, tuple(jnp.asarray(kernel, number) for kernel in kernels), origin)
    if D is not None:
        D = jnp.asarray(D, number).reshape(1, len(D), *[1] * len(kernels), x.shape[-1])
        y = y + D * inside[:, None]
    return y.astype(x.dtype)


def _check(x, kernels, D, origin):
    """Returns the origin as a tuple of Python ints."""
    where = "separable_conv"
    _checks.require_arrays(where, x=x)
    _checks.require_dtype(where, {"x": x, "D": D}, jnp.floating, "a real floating")
    if x.ndim != len(kernels) + 2:
        raise errors.bad_shape(where, "x", x, f"(b *s d) with as many axes *s as kernels, {len(kernels)}")
    first = kernels[0]
    for i, kernel in enumerate(kernels):
        if kernel.ndim != 4 or kernel.shape[:2] != first.shape[:2] or kernel.shape[3] != x.shape[-1]:
            wanted = f"(r c k d), with the (r c) of the first, {tuple(first.shape[:2])}, and d = {x.shape[-1]}"
            raise errors.bad_shape(where, f"kernels[{i}]", kernel, wanted)
        if 0 in kernel.shape[2:3]:
            raise errors.bad_shape(where, f"kernels[{i}]", kernel, "of one tap or more along k")
    _checks.require_shape(where, "D", D, "(c d)", (first.shape[1], x.shape[-1]))
    return _checks.as_origin(where, origin, [kernel.shape[2] for kernel in kernels])


def _example(key):
    keys = jax.random.split(key, 3)
    kernels = [jax.random.normal(k, (2, 3, taps, 4)) for k, taps in zip(keys[1:], (4, 7), strict=True)]
    return (jax.random.normal(keys[0], (2, 5, 6, 4)), kernels), {"origin": (1, 3)}


def _expected(x, kernels, origin):
    del origin
    return jax.ShapeDtypeStruct((x.shape[0], kernels[0].shape[1], *x.shape[1:]), x.dtype)


backend.register_op(
    "separable_conv", separable_conv, implementations=tuple(IMPLEMENTATIONS), example=_example, expected=_expected
)
