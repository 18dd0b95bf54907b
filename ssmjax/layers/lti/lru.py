"""The linear recurrent unit."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax.init.diagonal import lru_ring
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.lti.recurrence import Bidirectional, Matrices, ScanLayer
from ssmjax.layers.lti.state_space import positive
from ssmjax.ops.discretize.api import discretized

__all__ = ["LRU"]


class LRU(ScanLayer):
    r"""The linear recurrent unit (https://arxiv.org/abs/2303.06349, section 3).

        x_t = lambda x_(t-1) + gamma B u_t,    y_t = Re C x_t + D u_t,    lambda = exp(-exp(nu) + i exp(theta))

    A recurrence in discrete time from the start: `|lambda| < 1` by construction, and gamma keeps the state's size.

    Args:
        d_model: The width of a token, `h`.
        d_state: The number of complex modes, `p`.
        r_min: The least initial `|lambda|`.
        r_max: The largest, at most 1. For long sequences the paper takes 0.9 and 0.999.
        max_phase: The largest initial angle of lambda; the paper takes pi / 50 for Path-X.
        bidirectional: "none"; "inclusive": both directions read the present input; "exclusive": the reverse direction
            reads strictly future inputs.
        dtype: The dtype of the products with B and C and of the output. The scan and its state are always float32.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Attributes:
        nu_log, theta_log, gamma_log: (p).
        B_re, B_im: (p h).
        C_re, C_im: (h p); `C2_re` and `C2_im` beside them for the reverse direction.
        D: (h).

    A `rate`, and the lengths of steps in `dts`, are powers of lambda, and an input lasts as long: a step of length r is

        x_t = lambda^r x_(t-1) + (lambda^r - 1) / (lambda - 1) gamma B u_t,

    which is what r steps with the same input make of it. The angle of lambda counts within [-pi, pi].

    Raises:
        ValueError: A size is not positive, a name or the dtype is unknown, or the radii are not ordered, `0 <= r_min <
            r_max <= 1`.

    >>> import jax.numpy as jnp
    >>> layer = LRU(8, d_state=4, rngs=nnx.Rngs(0))
    >>> y, state = layer(jnp.ones((2, 6, 8)), return_state=True)
    >>> y.shape, state.shape
    ((2, 6, 8), (2, 4))
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        bidirectional: Bidirectional = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(d_model, d_state, bidirectional, dtype)
        d_model, d_state = self.d_model, self.modes
        ring = lru_ring(d_state, r_min=r_min, r_max=r_max, max_phase=max_phase, key=rngs.params())
        # gamma scales the input by what follows from A, and is trained like it.
        self.nu_log, self.theta_log, self.gamma_log = (parameter(v.astype(param_dtype), "A") for v in ring)

        def normal(shape, variance, kind):
            return parameter(math.sqrt(variance) * jax.random.normal(rngs.params(), shape, param_dtype), kind)

        self.B_re, self.B_im = (normal((d_state, d_model), 0.5 / d_model, "B") for _ in range(2))
        for name in _output_names(bidirectional):
            setattr(self, name, normal((d_model, d_state), 1 / d_state, "C"))
        self.D = normal((d_model,), 1, "D")

    def _matrices(self) -> Matrices:
        def complex_of(*names):
            return jax.lax.complex(*(getattr(self, name)[...].astype(jnp.float32) for name in names))

        names = _output_names(self.bidirectional)
        C = tuple(complex_of(*pair) for pair in zip(names[::2], names[1::2], strict=True))
        return Matrices(complex_of("B_re", "B_im"), C, self.D[...])

    def _discretize(self, rate, dts):
        nu, theta, gamma = (positive(v[...], "exp") for v in (self.nu_log, self.theta_log, self.gamma_log))
        if dts is None and isinstance(rate, int | float) and rate == 1:
            size = jnp.exp(-nu)
            return jax.lax.complex(size * jnp.cos(theta), size * jnp.sin(theta)), gamma
        if dts is not None:
            nu, theta, gamma = nu[None, None], theta[None, None], gamma[None, None]
            rate = rate * jnp.asarray(dts, jnp.float32)[..., None]
        A = jax.lax.complex(-nu, theta - 2 * math.pi * jnp.round(theta / (2 * math.pi)))
        rate = jnp.asarray(rate, jnp.float32)
        decay, lasting = discretized(A, jnp.broadcast_to(rate, jnp.broadcast_shapes(rate.shape, A.shape)), "zoh")
        _, once = discretized(A, jnp.ones_like(nu), "zoh")
        return decay, gamma.astype(decay.dtype) * lasting / once


def _output_names(bidirectional: Bidirectional) -> tuple[str, ...]:
    return ("C_re", "C_im") if bidirectional == "none" else ("C_re", "C_im", "C2_re", "C2_im")
