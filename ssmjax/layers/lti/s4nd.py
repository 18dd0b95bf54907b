"""S4ND: a state space along every axis of an image or a video."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, ops
from ssmjax.layers.common.checks import as_float_dtype, as_sizes, check_array, check_options, check_rate
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.lti.convolution import Bidirectional, longest
from ssmjax.layers.lti.s4 import DPLRKernel
from ssmjax.layers.lti.s4d import DiagonalKernel
from ssmjax.shapes import Array, Float

__all__ = ["S4ND"]

KERNELS = ("s4d", "s4")
MAX_AXES = 3


class S4ND(nnx.Module):
    r"""A convolution over images or videos whose kernel is made of state spaces (https://arxiv.org/abs/2210.06583).

        y_t = sum_j K_j u_(t-j) + D u_t,    K_(i j ...) = 1/R sum_r K1_(r i) K2_(r j) ...,

    equation 3 there: along each axis runs the kernel of an S4D or S4 layer of its own, and the kernel over all axes is
    a mean of R products of them. As the kernels are functions of continuous coordinates, a layer takes images of any
    size, and at another resolution with `rate=`.

    Args:
        d_model: The width of a pixel, `d`.
        axes: How many axes the input has: 2 for images, 3 for videos.
        d_state: The state size of each axis; half of it is stored, one mode of each conjugate pair.
        kernel: "s4d" or "s4", whose kernel runs along each axis.
        l_max: The largest number of taps along each axis, or one number for all: pixels that are farther away have no
            effect. None: all have. For "s4" it is required, and the longest side that an axis can have at `rate=1`.
        trank: The number R of products.
        channels: The outputs of a feature, `c`.
        bidirectional: "exclusive": the kernel is two-sided along every axis, with a backward half that reads strictly
            what comes after; "inclusive": which reads the pixel itself too; "none": one-sided.
        bandlimit: Drops the modes that turn by this fraction of the largest frequency or more, so that at another
            resolution none of them is aliased (section 3.3 of the paper); None keeps all.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dtype: The dtype of the output. The kernels and the convolution are float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.
        **options: Further arguments of the kernels: `DiagonalKernel` or `DPLRKernel`.

    Attributes:
        kernels: The kernel of each axis. Its channels are ordered `(direction r c)`.
        D: (c d).

    Raises:
        ValueError: A name is unknown, or a size does not fit.

    >>> import jax, jax.numpy as jnp
    >>> layer = S4ND(8, d_state=4, rngs=nnx.Rngs(0))
    >>> nnx.jit(S4ND.__call__)(layer, jnp.ones((2, 6, 5, 8))).shape
    (2, 6, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        axes: int = 2,
        d_state: int = 64,
        kernel: Literal["s4d", "s4"] = "s4d",
        l_max: int | Sequence[int] | None = None,
        trank: int = 1,
        channels: int = 1,
        bidirectional: Bidirectional = "exclusive",
        bandlimit: float | None = None,
        dt_min: float = 0.1,
        dt_max: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        remedy = "2 for images, 3 for videos."
        axes = errors.as_int("S4ND", "axes", axes, f"from 1 to {MAX_AXES}", least=1, most=MAX_AXES, remedy=remedy)
        d_model, trank, channels = as_sizes("S4ND", d_model=d_model, trank=trank, channels=channels)
        lengths = tuple(l_max) if isinstance(l_max, Sequence | np.ndarray) else (l_max,) * axes
        lengths = _check_options(axes, kernel, lengths, bidirectional)
        self.axes = axes
        self.l_max = lengths
        self.trank = trank
        self.channels = channels
        self.bidirectional = bidirectional
        self.dtype = as_float_dtype("S4ND", dtype)
        rows = trank * channels * (1 if bidirectional == "none" else 2)
        options |= dict(d_state=d_state, channels=rows, bandlimit=bandlimit, dt_min=dt_min, dt_max=dt_max)
        options |= dict(param_dtype=param_dtype, rngs=rngs)
        check_options(S4ND, DPLRKernel if kernel == "s4" else DiagonalKernel, options)
        if kernel == "s4":
            self.kernels = nnx.data([DPLRKernel(d_model, l_max=l, **options) for l in lengths])
        else:
            self.kernels = nnx.data([DiagonalKernel(d_model, **options) for _ in lengths])
        self.D = parameter(jax.random.normal(rngs.params(), (channels, d_model), param_dtype), "D")

    def __call__(self, x: Float[Array, "b ..."], *, rate: float | Sequence[float] = 1.0) -> Float[jax.Array, "b ..."]:
        """Convolves an image (b y x d) or a video (b z y x d).

        Args:
            x: (b *s d), with sides of any length.
            rate: A factor on the step sizes, for all axes or for each: 2 for an input sampled at half the rate.

        Returns:
            (b *s c*d) in the compute dtype, the features of the first channel first.

        Raises:
            ValueError: A shape, or the number of rates, does not fit.
        """
        d = self.D.shape[-1]
        wanted, remedy = f"(b *s d) with {self.axes} axes *s and d = {d}", f"The layer was built with axes={self.axes}."
        check_array("S4ND", "x", x, (None,) * (self.axes + 1) + (d,), wanted, remedy)
        if 0 in x.shape:
            return jnp.zeros((*x.shape[:-1], self.channels * d), self.dtype)
        kernels, origin = self.axis_kernels(x.shape[1:-1], rate=rate)
        kernels[0] = kernels[0] / self.trank
        y = ops.separable_conv(x, kernels, self.D[...].astype(jnp.float32), origin=origin)
        y = jnp.moveaxis(y, 1, -2)
        return y.reshape(*x.shape[:-1], self.channels * d).astype(self.dtype)

    def axis_kernels(
        self, lengths: Sequence[int], *, rate: float | Sequence[float] = 1.0
    ) -> tuple[list[Float[jax.Array, "r c _ d"]], list[int]]:
        """Returns the kernel along each axis, for `ssmjax.ops.separable_conv`.

        Args:
            lengths: The length of each axis.
            rate: The factor on the step sizes, as in a call.

        Returns:
            For each axis a kernel (r c k d), and the index of its tap at offset zero.
        """
        rates = tuple(rate) if isinstance(rate, Sequence) or np.ndim(rate) == 1 else (rate,) * self.axes
        if len(rates) != self.axes:
            raise errors.bad_argument("S4ND", "rate", rate, f"one number, or {self.axes}, one for each axis")
        made = [self._axis_kernel(*each) for each in zip(self.kernels, self.l_max, lengths, rates, strict=True)]
        return [kernel for kernel, _ in made], [origin for _, origin in made]

    def _axis_kernel(self, kernel: nnx.Module, l_max: int | None, length: int, rate: float) -> tuple[jax.Array, int]:
        check_rate("S4ND", rate)
        if l_max is not None and isinstance(kernel, DiagonalKernel):
            length = min(length, longest("S4ND", l_max, rate))
        taps = kernel(length, rate)
        taps = taps.reshape(-1, self.trank, self.channels, *taps.shape[1:])
        if self.bidirectional == "none":
            return taps[0], 0
        return ops.two_sided_kernel(taps[0], taps[1], inclusive=self.bidirectional == "inclusive")


def _check_options(axes: int, kernel: str, l_max: tuple[int | None, ...], bidirectional: str) -> tuple[int | None, ...]:
    where = "S4ND"
    names = {"kernel": (kernel, KERNELS), "bidirectional": (bidirectional, get_args(Bidirectional))}
    for name, (value, known) in names.items():
        if value not in known:
            raise ValueError(f"{where}: {errors.unknown_name(name, value, known)}")
    wanted = f"a positive int, or {axes}, one for each axis"
    if len(l_max) != axes:
        raise errors.bad_argument(where, "l_max", l_max, wanted)
    l_max = tuple(None if l is None else errors.as_int(where, "l_max", l, wanted, least=1) for l in l_max)
    if kernel == "s4" and None in l_max:
        remedy = "The kernel of S4 is stored for one length; take the longest side, or kernel='s4d'."
        raise errors.bad_argument(where, "l_max", None, "given with kernel='s4'", remedy)
    return l_max
