"""The public long convolutions: checks, choice of implementation, documentation."""

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops import _checks, _half, backend
from ssmjax.ops.fft_conv.reference import fft_conv_reference
from ssmjax.ops.fft_conv.xla import fft_conv_xla
from ssmjax.shapes import Array, Float

__all__ = ["convolve", "fft_conv", "fft_conv_nd"]

IMPLEMENTATIONS = {"xla": fft_conv_xla, "reference": fft_conv_reference}
MAX_AXES = 3


def fft_conv(
    x: Float[Array, "b l d"],
    kernel: Float[Array, "*c k d"],
    D: Float[Array, "*c d"] | None = None,
    *,
    origin: int = 0,
    implementation: str = "auto",
) -> Float[jax.Array, "b *c l d"]:
    """Computes the convolution of every feature with a kernel of its own, as long as the sequence.

        y_t = sum_j kernel_j x_(t - j + origin) + D x_t,    x zero outside the sequence,

    by real Fourier transforms long enough that nothing wraps around (section 2.4 of S4,
    https://arxiv.org/abs/2111.00396). With `origin = 0` it is causal; `two_sided_kernel` makes kernels that read the
    future, too, with their origin. The kernel may be shorter or longer than the sequence.

    A transform mixes all inputs before it separates them again, so that its causality is exact only up to rounding: an
    output may differ from the sum above by about `eps log2(n) |x|_2 |kernel|_1`, `n` the size of the transform and
    `eps` 1.2e-7 (2.2e-16 in float64), where `x` is the whole sequence. A large later input shows in earlier outputs as
    noise of that size, and a NaN or an infinity makes all outputs of its feature NaN. `implementation="reference"` is
    exactly causal: one tap after the other.

    Computed in float32 whatever the dtype of `x` (float64 if it is float64): transforms have no half precision. The
    backward pass keeps `x` and `kernel` alone. Reverse mode only; `implementation="reference"` has forward mode, too.

    Args:
        x: Input, (b l d), any float dtype.
        kernel: (k d), or (c k d) for c outputs of each feature.
        D: Skip weight, (d), or (c d).
        origin: The index into the kernel of its tap at offset zero: an int, as it decides what is compiled.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        y, (b l d), or (b c l d), in the dtype of `x`.

    Raises:
        ValueError: A shape, a dtype or the origin is wrong.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> x, kernel = jnp.array([[[1.0], [0.0], [2.0]]]), jnp.array([[1.0], [0.5]])
    >>> ssmjax.ops.fft_conv(x, kernel)[0, :, 0].round(3).tolist()
    [1.0, 0.5, 2.0]
    """
    where = "fft_conv"
    _check(where, x, kernel, D)
    origin = _checks.as_tap(where, "origin", origin, kernel.shape[-2])
    return _half.narrow(convolve(where, x, kernel, D, (origin,), implementation), x.dtype)


def fft_conv_nd(
    x: Float[Array, "b ... d"],
    kernel: Float[Array, "..."],
    D: Float[Array, "..."] | None = None,
    *,
    origin: tuple[int, ...] | None = None,
    implementation: str = "auto",
) -> Float[jax.Array, "b ..."]:
    """`fft_conv` over up to three axes: images (b y x d), videos.

        y_t = sum_j kernel_j x_(t - j + origin) + D x_t    with multi-indices t and j,

    the convolution of S4ND (section 3, https://arxiv.org/abs/2210.06583), whose kernels `separable_kernel` puts
    together. Numbers, causality, derivatives and memory as in `fft_conv`.

    Args:
        x: Input, (b *s d), any float dtype.
        kernel: (*k d), or (c *k d) for c outputs of each feature.
        D: Skip weight, (d), or (c d).
        origin: For each axis the index into the kernel of its tap at offset zero; zeros, which is causal along every
            axis, by default.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        y, (b *s d), or (b c *s d), in the dtype of `x`.

    Raises:
        ValueError: A shape, a dtype or an origin is wrong.
        NotImplementedError: A named implementation does not take this call, or there are more than three axes.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((2, 2, 1))
    >>> ssmjax.ops.fft_conv_nd(x, kernel)[0, :, :, 0].round(3).tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    where = "fft_conv_nd"
    _check(where, x, kernel, D)
    origin = _checks.as_origin(where, origin, kernel.shape[1 - x.ndim : -1])
    return _half.narrow(convolve(where, x, kernel, D, origin, implementation), x.dtype)


def convolve(where, x, kernel, D, origin, implementation="auto"):
    """`fft_conv` or `fft_conv_nd` of arguments known to be right, with an origin for each axis; at least float32."""
    empty = "an axis has size 0" if 0 in x.shape else None
    several = (
        None if x.ndim - 2 <= MAX_AXES else f"it has {x.ndim - 2} axes, and transforms run over at most {MAX_AXES}"
    )
    chosen = backend.resolve(where, implementation, {"xla": empty or several, "reference": None})
    number = np.result_type(x.dtype, np.float32)
    one_channel = kernel.ndim == x.ndim - 1
    channels = jnp.asarray(kernel[None] if one_channel else kernel, number)
    if D is not None:
        # The tap at offset zero: it costs nothing there, nor does its gradient, which is a slow reduction elsewhere.
        taps = [(o, k - 1 - o) for o, k in zip(origin, channels.shape[1:-1], strict=True)]
        D = jnp.asarray(D, number).reshape(len(channels), *[1] * len(taps), x.shape[-1])
        channels = channels + jnp.pad(D, [(0, 0), *taps, (0, 0)])
    y = IMPLEMENTATIONS[chosen](jnp.asarray(x, number), channels, origin)
    return y[:, 0] if one_channel else y


def _check(where, x, kernel, D):
    _checks.require_arrays(where, x=x, kernel=kernel)
    _checks.require_dtype(where, {"x": x, "kernel": kernel, "D": D}, jnp.floating, "a real floating")
    if where == "fft_conv" and x.ndim != 3:
        raise errors.bad_shape(where, "x", x, "of rank 3, (b l d)", "For images or videos use fft_conv_nd.")
    if x.ndim < 3:
        remedy = "For a sequence add a feature: x[..., None]."
        raise errors.bad_shape(where, "x", x, "of rank 3 or more, (b *s d)", remedy)
    axes, d = x.ndim - 2, x.shape[-1]
    if kernel.ndim not in (axes + 1, axes + 2) or kernel.shape[-1] != d:
        wanted = f"(*k d) or (c *k d), with {axes} spatial axes and d = {d}"
        raise errors.bad_shape(where, "kernel", kernel, wanted, "Features are last, in x and in the kernel.")
    if 0 in kernel.shape[-axes - 1 : -1]:
        raise errors.bad_shape(where, "kernel", kernel, "of one tap or more along each axis", "Zeros make no output.")
    if D is not None and D.shape != (sizes := (*kernel.shape[: -axes - 1], d)):
        raise errors.bad_shape(where, "D", D, f"(d) or (c d) = {sizes}")


def _example(key):
    keys = jax.random.split(key)
    return (jax.random.normal(keys[0], (2, 5, 3)), jax.random.normal(keys[1], (4, 3))), {"origin": 1}


def _example_nd(key):
    keys = jax.random.split(key)
    return (jax.random.normal(keys[0], (2, 5, 4, 3)), jax.random.normal(keys[1], (2, 4, 7, 3))), {"origin": (1, 2)}


def _expected(x, kernel, origin):
    del origin
    return jax.ShapeDtypeStruct((x.shape[0], *kernel.shape[: -x.ndim + 1], *x.shape[1:]), x.dtype)


for _function, _calls in ((fft_conv, _example), (fft_conv_nd, _example_nd)):
    backend.register_op(
        _function.__name__, _function, implementations=tuple(IMPLEMENTATIONS), example=_calls, expected=_expected
    )
