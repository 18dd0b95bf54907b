"""DSS: diagonal state spaces with one spectrum for all features, and modes normalized over the length."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, ops
from ssmjax.init.diagonal import DIAGONALS, diagonal_modes
from ssmjax.init.step_size import log_step_size
from ssmjax.layers.common.checks import as_sizes, check_step_range
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.lti.convolution import Bidirectional, ConvolutionLayer, longest
from ssmjax.layers.lti.diagonal_kernel import DiagonalTaps
from ssmjax.layers.lti.s4d import DIAGONAL_RULES
from ssmjax.layers.lti.state_space import as_complex, as_real, positive
from ssmjax.ops._numerics.pairs import as_pair, reciprocal
from ssmjax.ops._numerics.transition import power_sum
from ssmjax.ops.recurrences.diagonal import EPSILON, DiagonalRecurrence, inverse, softmax_epsilon, transition_rule
from ssmjax.ops.vandermonde.api import diagonal_taps
from ssmjax.shapes import Array, Complex, Float

__all__ = ["DSS", "DSSKernel", "Parametrization"]

Parametrization = Literal["clip", "exp", "exp-re-im"]
"""How the spectrum is stored: as it is, with a bound on its real part; or with logarithms of its parts."""


class DSSKernel(DiagonalTaps):
    r"""The convolution kernels of DSS.

        K_l = Re sum_n W_n / Lambda_n e^(l x_n) / sum_(j < L) e^(j x_n)        discretization="softmax"
        K_l = Re sum_n W_n / Lambda_n (e^(x_n) - 1) e^(l x_n)                  discretization="zoh"

    propositions 1 (b) and (a) of DSS (https://arxiv.org/abs/2203.14343), with `x = dt_re Re Lambda + i dt_im Im
    Lambda`: the real and the imaginary part have step sizes of their own, and all features share one `Lambda`.

    Args:
        d_model: The number of features, `h`.
        d_state: The number of modes, `n`, all of which count once.
        channels: How many kernels a feature has, `c`.
        discretization: "softmax", or a name of `ssmjax.ops.discretize`; "zoh" is DSS-exp, "dirac" the same without the
            factor `(e^x - 1) / Lambda`.
        parametrization: "clip": `Lambda`, with its real part held at `max_real` or below; "exp": the logarithm of the
            negative real part; "exp-re-im": the logarithms of both parts.
        max_real: The bound for "clip", or None. Modes that grow are sound with "softmax", in whole sequences only.
        init: How Lambda starts: a name of `ssmjax.init.diagonal.diagonal_modes`, but "rand".
        l_max: With "softmax", the length L that modes are normalized over, and the longest convolution: then sequences
            may come in chunks and steps, also beyond L together. None: the length of each sequence, which has neither.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        separate_dt: Whether the real and the imaginary part have step sizes of their own.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Attributes:
        log_dt: (h 2), or (h).
        W: (c h n 2), real and imaginary parts.
        Lambda: (n 2) with "clip". Otherwise `Lambda_log_neg_re` (n) and `Lambda_im`, or `Lambda_log_im`, (n).

    Raises:
        ValueError: A name is unknown or a size is not positive.

    >>> DSSKernel(8, d_state=4, rngs=nnx.Rngs(0))(100).shape
    (1, 100, 8)
    """

    layer = "DSS"

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        channels: int = 1,
        discretization: str = "softmax",
        parametrization: Parametrization = "clip",
        max_real: float | None = -1e-4,
        init: str = "legs",
        l_max: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        separate_dt: bool = True,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        rules = [name for name in DIAGONAL_RULES if name != "dss"]  # S4D's name for what is "softmax" here
        inits = [name for name in DIAGONALS if name != "rand"]
        for kind, name, known in (
            ("discretization", discretization, rules),
            ("parametrization", parametrization, get_args(Parametrization)),
            ("initialization", init, inits),
        ):
            if name not in known:
                raise ValueError(f"DSS: {errors.unknown_name(kind, name, known)}")
        d_model, d_state, channels = as_sizes("DSS", d_model=d_model, d_state=d_state, channels=channels)
        l_max = None if l_max is None else errors.as_int("DSS", "l_max", l_max, "a positive int, or None", least=1)
        check_step_range("DSS", dt_min, dt_max)
        errors.require_flags("DSS", separate_dt=separate_dt)
        if max_real is not None:
            number = isinstance(max_real, int | float | np.number) and not isinstance(max_real, bool)
            if not number or not math.isfinite(max_real):
                raise errors.bad_argument("DSS", "max_real", max_real, "a finite number, or None")
            max_real = float(max_real)
        self.d_model, self.modes, self.channels, self.l_max = d_model, d_state, channels, l_max
        self.discretization, self.parametrization, self.max_real = discretization, parametrization, max_real
        self.transition = transition_rule(discretization)
        log_dt = log_step_size(rngs.params(), (d_model,), dt_min, dt_max)
        log_dt = jnp.stack([log_dt, log_dt], axis=-1) if separate_dt else log_dt
        self.log_dt = parameter(log_dt.astype(param_dtype), "dt")
        # The product of B and C, which the original trains as S4 does B.
        self.W = parameter(jax.random.normal(rngs.params(), (channels, d_model, d_state, 2), param_dtype), "B")
        modes = jnp.asarray(diagonal_modes(init, 2 * d_state)[0].conj(), jnp.complex64)
        if parametrization == "clip":
            self.Lambda = parameter(as_real(modes).astype(param_dtype), "A")
        else:
            self.Lambda_log_neg_re = parameter(jnp.log(-modes.real).astype(param_dtype), "A")
            if parametrization == "exp":
                self.Lambda_im = parameter(modes.imag.astype(param_dtype), "A")
            else:
                log_im = jnp.log(jnp.maximum(modes.imag, 1e-4))
                self.Lambda_log_im = parameter(log_im.astype(param_dtype), "A")

    def taps(self, length: int, rate: float | Array, over: Array | None = None) -> Float[jax.Array, "*b c l h"]:
        """Returns the kernels, of arguments that are checked."""
        A, dt = self.scaled(rate)
        if self.discretization == "softmax":
            modes = self.modes_of_all()[None]
            weights = as_complex(self.W[...].astype(jnp.float32)) * inverse(modes)[None]
            epsilon = softmax_epsilon(A, dt, modes)
            most = self._normalized_over(length, rate)
            return ops.softmax_kernel(weights, A, most, dt=dt, epsilon=epsilon, over=over)[..., :length, :]
        _, B_bar, C = self.discretized(rate)
        return diagonal_taps(C * B_bar[None], A, dt, length, self.transition)

    def modes_of_all(self) -> Complex[jax.Array, " n"]:
        """Lambda, which the features share."""
        if self.parametrization == "clip":
            re, im = jnp.split(self.Lambda[...].astype(jnp.float32), 2, axis=-1)
            re = re if self.max_real is None else jnp.minimum(re, self.max_real)
            return jax.lax.complex(re, im)[..., 0]
        re = -positive(self.Lambda_log_neg_re[...], "exp")
        if self.parametrization == "exp":
            return jax.lax.complex(re, self.Lambda_im[...].astype(jnp.float32))
        return jax.lax.complex(re, positive(self.Lambda_log_im[...], "exp"))

    def scaled(self, rate: float | Array = 1.0) -> tuple[Complex[jax.Array, "h n"], Float[jax.Array, "h n"]]:
        """Returns A and step sizes, `dt A = x`: the step sizes are the imaginary part's, which keeps angles exact."""
        dt = positive(self.log_dt[...], "exp").reshape(self.d_model, -1)
        modes = self.modes_of_all()[None]
        A = jax.lax.complex(modes.real * (dt[:, :1] / dt[:, -1:]), jnp.broadcast_to(modes.imag, self._shape))
        return A, jnp.broadcast_to(rate * dt[:, -1:], self._shape)

    def discretized(self, rate: float | Array) -> DiagonalRecurrence:
        """Returns the discretized state space, of a rate that is checked.

        Raises:
            ValueError: Modes are normalized over the length of each sequence, or may grow.
        """
        A, dt = self.scaled(rate)
        C = 0.5 * as_complex(self.W[...].astype(jnp.float32))  # a diagonal recurrence counts twice
        if self.discretization != "softmax":
            lasts = self.scaled()[1] if self.discretization == "async" else None
            A_bar, gain = ops.discretize(A, dt, self.discretization, dt_input=lasts)
            if self.discretization != "dirac":
                gain = gain * A * inverse(self.modes_of_all(), EPSILON)[None]
            return DiagonalRecurrence(A_bar, gain, C)
        self._check_recurrent()
        parts, length = as_pair(A), self._normalized_over(1, rate)
        total = power_sum(parts, dt, length)
        modes = self.modes_of_all()[None]
        weights = jax.lax.complex(*reciprocal(total, softmax_epsilon(A, dt, modes))) * inverse(modes)
        return DiagonalRecurrence(ops.discretize(A, dt, "dirac")[0], jnp.ones_like(A), C * weights[None])

    def init_state(self, batch: int) -> Complex[jax.Array, "b h n"]:
        """Returns the state before the first token: zeros."""
        return jnp.zeros((batch, *self._shape), jnp.complex64)

    @property
    def depends_on_length(self) -> bool:
        """Whether other taps follow from another length."""
        return self.discretization == "softmax" and self.l_max is None

    @property
    def _shape(self) -> tuple[int, int]:
        return self.d_model, self.modes

    def _normalized_over(self, length: int, rate: float | Array) -> int:
        length = errors.as_int("DSS", "length", length, least=1)
        if self.l_max is None:
            return length
        most = longest("DSS", self.l_max, rate)
        if length > most:
            wanted = f"at most {most}, over which modes are normalized"
            enough = math.ceil(length * float(rate))
            raise errors.bad_argument("DSS", "length", length, wanted, f"Build it with l_max={enough} or None.")
        return most

    def _check_recurrent(self) -> None:
        if self.l_max is None:
            remedy = "Its softmax is over the length of a sequence, which a chunk or a step does not know."
            raise errors.bad_argument("DSS", "l_max", None, "given for a state, a step or a scan", remedy)
        if self.parametrization == "clip" and (self.max_real is None or self.max_real >= 0):
            remedy = "A mode that grows overflows in a recurrence."
            raise errors.bad_argument(
                "DSS", "max_real", self.max_real, "negative for a state, a step or a scan", remedy
            )


class DSS(ConvolutionLayer):
    r"""The diagonal state space layer (https://arxiv.org/abs/2203.14343): a bare one, without activation or norm.

    Args:
        d_model: The width of a token, `h`.
        d_state: The number of modes, `n`.
        channels: How many outputs a feature has, `c`.
        bidirectional: "none"; "exclusive": a second kernel reads strictly future inputs (S4's school); "inclusive": it
            reads the present one too (S5's).
        dtype: The dtype of the output. Everything within is float32.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.
        **options: Those of `DSSKernel`, such as `discretization="zoh"`; with the default, "softmax", chunks and steps
            need `l_max`.

    Attributes:
        kernel: The `DSSKernel`; twice the channels if bidirectional, the forward ones first.
        D: (c h).

    Raises:
        ValueError: An argument is wrong, as in `DSSKernel`.

    >>> import jax.numpy as jnp
    >>> layer = DSS(8, d_state=4, l_max=6, rngs=nnx.Rngs(0))
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
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options,
    ):
        super().__init__(d_model, channels, bidirectional, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self._add_kernel(DSSKernel, d_state=d_state, param_dtype=param_dtype, rngs=rngs, **options)
