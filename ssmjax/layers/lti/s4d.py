"""S4D: a diagonal state space for every feature, run as a long convolution."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, ops
from ssmjax.layers.lti.convolution import Bidirectional, ConvolutionLayer
from ssmjax.layers.lti.diagonal_kernel import DiagonalTaps
from ssmjax.layers.lti.state_space import StateSpaceParameters
from ssmjax.ops.discretize.api import discretized
from ssmjax.ops.recurrences.diagonal import EPSILON, DiagonalRecurrence, inverse, softmax_epsilon, transition_rule
from ssmjax.ops.vandermonde.api import diagonal_taps
from ssmjax.shapes import Array, Float, Inexact

__all__ = ["DIAGONAL_RULES", "S4D", "DiagonalKernel"]

DIAGONAL_RULES = ("zoh", "bilinear", "euler", "impulse", "dirac", "async", "softmax", "dss")
"""The names that `discretization=` takes: those of `ssmjax.ops.discretize`, and DSS's normalized kernel."""

NORMALIZED = ("softmax", "dss")
"""Both normalize the modes over the length; "dss" bounds what it divides by as the code of S4 and of DSS does."""


class DiagonalKernel(DiagonalTaps, StateSpaceParameters):
    r"""The convolution kernels of diagonal state spaces, one a feature and channel: S4D's parameters.

        K_l = 2 Re sum_n C_n A_bar_n^l B_bar_n,    A = -f(A_real) - i g(A_imag),

    sections 3 and 4 of S4D (https://arxiv.org/abs/2206.11893). Float32 whatever the dtype of the parameters.

    Args:
        d_model: The number of features, `h`.
        d_state: The state size N, of which `n = N / 2` modes are stored, one of each conjugate pair.
        channels: How many kernels a feature has, `c`; each has its own C.
        copies: How many independent (A, B) there are, `s`: feature `h` uses copy `h mod s`. None: one a feature.
        init: How A starts: "diag-lin", "diag-inv", "legs", ...; see `ssmjax.init.diagonal.state_space`.
        B_init: How B starts, for a "diag-" initialization: "constant", "random", "alternating", "unit-cw", "unit-ccw".
        discretization: A name of `ssmjax.ops.discretize` ("euler" is unstable where `|1 + dt A| > 1`), or "softmax" or
            "dss": modes are normalized over the kernel's length, as in DSS, see `NORMALIZED`. "async" differs from
            "zoh" at another `rate`: an input then lasts as long as at 1.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dt_transform: What makes step sizes positive: "exp", "softplus", "relu", "sigmoid" or "clip".
        dt_tie: One step size a feature; False: one a mode.
        real_transform: What makes the real part of -A positive; the same names.
        imag_transform: What makes the imaginary part of -A positive, or "none", which leaves it free.
        bandlimit: Drops the modes that turn by this fraction of the largest frequency or more (section 3.3 of S4ND,
            https://arxiv.org/abs/2210.06583), or None.
        real: A, B and C are real: N decays, an exponential moving average, still counted twice.
        conj_sym: False stores all N modes, which then need not come in pairs, and counts each once.
        frozen: Which of "dt", "A", "B" and "C" are not trained: a `Frozen` variable, not an `nnx.Param`.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Attributes:
        inv_dt: (h 1), or (h n).
        C: (c h n 2), real and imaginary parts; (c h n) if `real`.
        B: (1 s n 2); (1 s n) if `real`.
        A_real, A_imag: (s n); no `A_imag` if `real`.

    Raises:
        ValueError: A name is unknown, N is odd where modes come in pairs, or `copies` does not divide `d_model`.

    >>> kernel = DiagonalKernel(8, d_state=4, init="diag-lin", rngs=nnx.Rngs(0))
    >>> kernel(100).shape
    (1, 100, 8)
    >>> bool(jnp.allclose(kernel(8, rate=1.0)[:, :4], kernel(4), atol=1e-6))
    True
    """

    layer = "S4D"

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        channels: int = 1,
        copies: int | None = None,
        init: str = "legs",
        B_init: str = "constant",
        discretization: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_transform: str = "exp",
        dt_tie: bool = True,
        real_transform: str = "exp",
        imag_transform: str = "none",
        bandlimit: float | None = None,
        real: bool = False,
        conj_sym: bool = True,
        frozen: tuple[str, ...] = (),
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if discretization not in DIAGONAL_RULES:
            raise ValueError(f"S4D: {errors.unknown_name('discretization', discretization, DIAGONAL_RULES)}")
        super().__init__(
            "S4D",
            d_model,
            d_state=d_state,
            channels=channels,
            copies=copies,
            init=init,
            B_init=B_init,
            rank=0,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_transform=dt_transform,
            dt_tie=dt_tie,
            real_transform=real_transform,
            imag_transform=imag_transform,
            bandlimit=bandlimit,
            real=real,
            conj_sym=conj_sym,
            frozen=frozen,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.discretization = discretization
        self.transition = transition_rule(discretization)

    def taps(self, length: int, rate: float | Array, over: Array | None = None) -> Float[jax.Array, "*b c l h"]:
        """Returns the kernels, of arguments that are checked."""
        A, dt, (B, C) = self.A(), self.step_sizes(rate), self.vectors()
        if self.discretization in NORMALIZED:
            once = 1 if self.conj_sym else 2  # this kernel counts each mode once, in any case
            weights = once * C * (B * inverse(A))[None]
            return ops.softmax_kernel(
                weights,
                A,
                length,
                dt=dt,
                epsilon=softmax_epsilon(A, dt, A) if self.discretization == "dss" else EPSILON,
                over=over,
            )
        lasts = self.step_sizes() if self.discretization == "async" else None
        _, gain = discretized(A, dt, self.discretization, lasts)
        return diagonal_taps(C * (gain * B)[None], A, dt, length, self.transition)

    @property
    def depends_on_length(self) -> bool:
        """Whether other taps follow from another length."""
        return self.discretization in NORMALIZED

    def scaled(self, rate: float | Array = 1.0) -> tuple[Inexact[jax.Array, "h n"], Float[jax.Array, "h n"]]:
        """Returns A and the step sizes."""
        return self.A(), self.step_sizes(rate)

    def discretized(self, rate: float | Array) -> DiagonalRecurrence:
        """Returns the discretized state space, of a rate that is checked."""
        if self.discretization in NORMALIZED:
            remedy = "Its modes are normalized over the length of a sequence; take another discretization."
            raise errors.bad_argument("S4D", "discretization", self.discretization, "one with a recurrence", remedy)
        lasts = self.step_sizes() if self.discretization == "async" else None
        A_bar, gain = discretized(*self.scaled(rate), self.discretization, lasts)
        B, C = self.vectors()
        return DiagonalRecurrence(A_bar, gain * B, C)


class S4D(ConvolutionLayer):
    r"""The diagonal structured state space layer (https://arxiv.org/abs/2206.11893).

        x' = A x + B u,    y = 2 Re C x + D u

    for every feature on its own, with a diagonal A: a bare state space, without activation or norm. It is run as a
    convolution; as a scan, in chunks (`state=`, `return_state=True`) and token by token (`step`) the outputs are the
    same, with padding (`mask=`) anywhere, too.

    Args:
        d_model: The width of a token, `h`.
        d_state: The state size N.
        channels: How many outputs a feature has, `c`.
        bidirectional: "none"; "exclusive": a second kernel reads strictly future inputs (S4's school); "inclusive": it
            reads the present one too (S5's).
        l_max: The largest number of taps of the convolution: inputs that are farther away are forgotten. None: all are
            remembered, as chunks and steps do in any case.
        dtype: The dtype of the output. Everything within is float32.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.
        **options: Those of `DiagonalKernel`, such as `init="diag-lin"`.

    Attributes:
        kernel: The `DiagonalKernel`; twice the channels if bidirectional, the forward ones first.
        D: (c h).

    Raises:
        ValueError: An argument is wrong, as in `DiagonalKernel`.

    >>> import jax.numpy as jnp
    >>> layer = S4D(8, d_state=4, rngs=nnx.Rngs(0))
    >>> u = jnp.ones((2, 6, 8))
    >>> whole = layer(u)
    >>> first, state = layer(u[:, :4], return_state=True)
    >>> second, state = layer(u[:, 4:], state=state, return_state=True)
    >>> bool(jnp.allclose(whole, jnp.concatenate([first, second], axis=1), atol=1e-5))
    True
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        channels: int = 1,
        bidirectional: Bidirectional = "none",
        l_max: int | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options,
    ):
        super().__init__(d_model, channels, bidirectional, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.l_max = None if l_max is None else errors.as_int("S4D", "l_max", l_max, "a positive int, or None", least=1)
        self._add_kernel(DiagonalKernel, d_state=d_state, param_dtype=param_dtype, rngs=rngs, **options)
