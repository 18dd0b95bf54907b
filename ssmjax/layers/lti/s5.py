"""S5: one state space of many inputs and outputs, run as a scan."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.init.diagonal import block_diagonal_legs
from ssmjax.init.step_size import log_step_size
from ssmjax.layers.common.checks import as_sizes, check_step_range
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.lti.recurrence import Bidirectional, Matrices, ScanLayer
from ssmjax.layers.lti.state_space import as_complex, positive
from ssmjax.ops._checks import Rule, require_rule
from ssmjax.ops.discretize.api import discretized
from ssmjax.shapes import Float

__all__ = ["S5"]

OutputInit = Literal["trunc_standard_normal", "lecun_normal", "complex_normal"]
"""How C is drawn. The names are the original's, and do not all say what they do; see `S5`."""

LARGEST_REAL_PART = -1e-4
"""What `clip_eigs` holds the real parts below, so that every mode decays."""

TRUNCATED_STD = 0.87962566103423978
"""The standard deviation of a standard normal that is cut off at two."""


class S5(ScanLayer):
    r"""The simplified state space layer (https://arxiv.org/abs/2208.04933, section 3).

        x' = A x + B u,    y = 2 Re C x + D u,    discretized:  x_t = A_bar x_(t-1) + B_bar u_t

    with a diagonal complex A, of which one mode of each conjugate pair is stored, and dense B and C over all features.
    A step's length may differ from token to token (`dts=`): the gain of the discretization is applied to `B u`, so that
    nothing of size (l p h) is made (Event-SSM, https://arxiv.org/abs/2404.18508, section 3).

    Args:
        d_model: The width of a token, `h`.
        d_state: The state size P. With `conj_sym` half of it is stored: `p = P / 2`, else `p = P`.
        blocks: A starts as that many equal blocks of HiPPO-LegS (appendix B.1), J in the paper.
        conj_sym: Stores one mode of each conjugate pair.
        c_init: How C starts. "trunc_standard_normal": normal with variance 1 / P, in the eigenbasis of A;
            "lecun_normal": the same with variance 1 / (P h); "complex_normal": standard complex normal.
        discretization: "zoh", "bilinear", "euler", "impulse", "dirac" or "async"; see `ssmjax.ops.discretize`. "async"
            differs from "zoh" with `dts`: an input then lasts one step, however long ago the last event was.
        clip_eigs: Holds the real part of A below -1e-4, so that the layer is stable whatever training does. The
            original's default is not to.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        bidirectional: "none"; "inclusive": both directions read the present input (S5's school); "exclusive": the
            reverse direction reads strictly future inputs (S4's).
        dtype: The dtype of the products with B and C and of the output. The scan and its state are always float32.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Attributes:
        Lambda_re, Lambda_im: (p), A.
        B: (p h 2), real and imaginary parts.
        C: (h p 2); `C1` and `C2` in place of it, one a direction, if there are two.
        D: (h).
        log_step: (p 1), the logarithm of each mode's step size.

    Raises:
        ValueError: A name is unknown, or a size does not fit: `d_state` must be a multiple of `blocks`, of twice
            `blocks` with `conj_sym`.

    >>> import jax.numpy as jnp
    >>> layer = S5(8, d_state=4, rngs=nnx.Rngs(0))
    >>> u = jnp.ones((2, 6, 8))
    >>> whole = layer(u)
    >>> first, state = layer(u[:, :4], return_state=True)
    >>> second, state = layer(u[:, 4:], state=state, return_state=True)
    >>> bool(jnp.allclose(whole, jnp.concatenate([first, second], axis=1), atol=1e-6))
    True
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        blocks: int = 1,
        conj_sym: bool = True,
        c_init: OutputInit = "trunc_standard_normal",
        discretization: Rule = "zoh",
        clip_eigs: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        bidirectional: Bidirectional = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        require_rule("S5", discretization)
        if c_init not in get_args(OutputInit):
            raise ValueError(f"S5: {errors.unknown_name('c_init', c_init, get_args(OutputInit))}")
        check_step_range("S5", dt_min, dt_max)
        errors.require_flags("S5", conj_sym=conj_sym, clip_eigs=clip_eigs)
        d_model, d_state, blocks = as_sizes("S5", d_model=d_model, d_state=d_state, blocks=blocks)
        _check_blocks(d_state, blocks, conj_sym)
        modes, V, V_inverse = block_diagonal_legs(d_state, blocks, conj_sym=conj_sym)
        super().__init__(d_model, len(modes), bidirectional, dtype)
        self.conj_sym = conj_sym
        self.discretization = discretization
        self.clip_eigs = clip_eigs

        self.Lambda_re = parameter(jnp.asarray(modes.real, param_dtype), "A")
        self.Lambda_im = parameter(jnp.asarray(modes.imag, param_dtype), "A")
        self.B = parameter(_initial_B(rngs.params(), V_inverse, d_model).astype(param_dtype), "B")
        for name in ("C",) if bidirectional == "none" else ("C1", "C2"):
            setattr(self, name, parameter(_initial_C(rngs.params(), c_init, V, d_model).astype(param_dtype), "C"))
        self.D = parameter(jax.random.normal(rngs.params(), (d_model,), param_dtype), "D")
        log_step = log_step_size(rngs.params(), (self.modes, 1), dt_min, dt_max)
        self.log_step = parameter(log_step.astype(param_dtype), "dt")

    def _matrices(self) -> Matrices:
        names = ("C",) if self.bidirectional == "none" else ("C1", "C2")
        factor = 2.0 if self.conj_sym else 1.0
        C = tuple(factor * as_complex(getattr(self, name)[...].astype(jnp.float32)) for name in names)
        return Matrices(as_complex(self.B[...].astype(jnp.float32)), C, self.D[...])

    def _discretize(self, rate, dts):
        re, im = (v[...].astype(jnp.float32) for v in (self.Lambda_re, self.Lambda_im))
        A = jax.lax.complex(jnp.minimum(re, LARGEST_REAL_PART) if self.clip_eigs else re, im)
        step = rate * positive(self.log_step[...][:, 0], "exp")
        dt = step if dts is None else step[None, None] * jnp.asarray(dts, jnp.float32)[..., None]
        return discretized(A, dt, self.discretization, step if self.discretization == "async" else None)


def _check_blocks(d_state: int, blocks: int, conj_sym: bool) -> None:
    if conj_sym and d_state % 2:
        remedy = "Modes come in conjugate pairs; conj_sym=False stores them all."
        raise errors.bad_argument("S5", "d_state", d_state, "even", remedy)
    multiple = 2 * blocks if conj_sym else blocks
    if d_state % multiple:
        wanted = f"a multiple of {multiple}, {'twice the' if conj_sym else 'the'} number of blocks"
        fitting = [n for n in range(1, d_state + 1) if d_state % (2 * n if conj_sym else n) == 0]
        remedy = f"`blocks` that fit are {fitting}; of a model it is one of `layer_options`."
        raise errors.bad_argument("S5", "d_state", d_state, wanted, remedy)


def _initial_B(key: jax.Array, V_inverse: np.ndarray, d_model: int) -> Float[jax.Array, "p h 2"]:
    """Returns a real B of variance 1 / P, taken to the eigenbasis."""
    B = jax.nn.initializers.lecun_normal()(key, (V_inverse.shape[1], d_model))
    return jnp.stack([_dot(V_inverse.real, B), _dot(V_inverse.imag, B)], axis=-1)


def _initial_C(key: jax.Array, name: str, V: np.ndarray, d_model: int) -> Float[jax.Array, "h p 2"]:
    size, modes = V.shape
    if name == "complex_normal":
        return jax.random.normal(key, (d_model, modes, 2)) * 0.5**0.5
    # The original draws (h P 2) at once for "lecun_normal", whose fan-in is then P h; for the other, row by row.
    fan_in = size * (d_model if name == "lecun_normal" else 1)
    draw = jax.nn.initializers.truncated_normal(fan_in**-0.5 / TRUNCATED_STD)(key, (d_model, size, 2))
    re, im = draw[..., 0], draw[..., 1]
    return jnp.stack([_dot(re, V.real) - _dot(im, V.imag), _dot(re, V.imag) + _dot(im, V.real)], axis=-1)


def _dot(a, b):
    return jnp.dot(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), precision=jax.lax.Precision.HIGHEST)
