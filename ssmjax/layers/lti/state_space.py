"""The parameters that S4 and S4D share: step sizes and independent copies of (A, B), stored as real numbers.

A step size and the real part of -A are positive by their parametrization, whatever an optimizer does: a transform of an
unbounded number, held within [1e-7, 1e7] so that neither underflow nor overflow undoes it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.init.diagonal import state_space
from ssmjax.init.step_size import inverse_softplus, log_step_size
from ssmjax.layers.common.checks import as_sizes, check_step_range
from ssmjax.layers.common.parameters import parameter
from ssmjax.shapes import Array, Complex, Float, Inexact

__all__ = ["TRANSFORMS", "Frozen", "StateSpaceParameters", "as_complex", "as_real", "positive"]

LOG_BOUND = math.log(1e7)
LEAST = 1e-7
INITIAL_LEAST = 1e-4
"""Initial values are raised to it before a transform is inverted, as S4's are: a real part of zero has no logarithm."""

TRANSFORMS: dict[str, tuple[Callable, Callable]] = {
    "exp": (lambda x: jnp.exp(jnp.clip(x, -LOG_BOUND, LOG_BOUND)), jnp.log),
    "softplus": (lambda x: jnp.maximum(jax.nn.softplus(x), LEAST), inverse_softplus),
    "relu": (lambda x: jax.nn.relu(x) + INITIAL_LEAST, lambda x: x),
    "sigmoid": (lambda x: jnp.maximum(jax.nn.sigmoid(x), LEAST), jax.scipy.special.logit),
    "clip": (lambda x: jnp.maximum(x, INITIAL_LEAST), lambda x: x),
}
"""Positive functions of an unbounded parameter, and their inverses."""


class Frozen(nnx.Variable):
    """An array that belongs to a layer's checkpoint and is not trained."""


class StateSpaceParameters(nnx.Module):
    """What a kernel of S4 or S4D is made of: `inv_dt`, `C`, `B`, `A_real`, `A_imag`; see `DiagonalKernel`.

    The names and layouts are those of the S4 authors' code. Feature `h` uses the copy `h mod copies` of (A, B).

    Args:
        where: The public class, for messages.
        d_model: The number of features, `h`.
        d_state: The state size N.
        channels: How many C each feature has, `c`.
        copies: How many independent (A, B) there are, `s`; `d_model` of them if None.
        init: A name of `ssmjax.init.diagonal.state_space`.
        B_init: A name of `ssmjax.init.diagonal.input_vector`, for a diagonal initialization.
        rank: The rank of the low-rank part; 0 leaves it out.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dt_transform: A name of `TRANSFORMS`.
        dt_tie: One step size a feature; False: one a mode.
        real_transform: A name of `TRANSFORMS`, of the real part of -A.
        imag_transform: What makes the imaginary part of -A positive, or "none".
        bandlimit: Drops modes that turn by more than this fraction of the sampling rate's half, or None.
        real: A state space of real numbers: N of them in place of N / 2 complex modes.
        conj_sym: Whether one mode of each conjugate pair is stored, N / 2 of them. False: all N, and C, the input and
            output vectors, need not be symmetric.
        frozen: Which of "dt", "A", "B", "C", "P" are not trained.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.
    """

    def __init__(
        self,
        where: str,
        d_model: int,
        *,
        d_state: int,
        channels: int,
        copies: int | None,
        init: str,
        B_init: str,
        rank: int,
        dt_min: float,
        dt_max: float,
        dt_transform: str,
        dt_tie: bool,
        real_transform: str,
        imag_transform: str,
        bandlimit: float | None,
        real: bool,
        conj_sym: bool,
        frozen: tuple[str, ...],
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        copies = d_model if copies is None else copies
        d_model, d_state, channels, copies = as_sizes(
            where, d_model=d_model, d_state=d_state, channels=channels, copies=copies
        )
        errors.require_flags(where, dt_tie=dt_tie, real=real, conj_sym=conj_sym)
        _check_sizes(where, d_model, d_state, copies, conj_sym and not real)
        frozen = _check_names(where, dt_transform, real_transform, imag_transform, frozen, rank)
        if bandlimit is not None:
            remedy = "It is a fraction of the band; None keeps all modes."
            bandlimit = errors.as_nonnegative(where, "bandlimit", bandlimit, positive=True, remedy=remedy)
        check_step_range(where, dt_min, dt_max)
        _check_reach(where, "dt_transform", dt_transform, dt_max, "dt_max")
        self.d_model, self.channels = d_model, channels
        self.modes = d_state // 2 if conj_sym and not real else d_state
        self.real, self.conj_sym = real, conj_sym
        self.dt_transform, self.real_transform, self.imag_transform = dt_transform, real_transform, imag_transform
        self.bandlimit = bandlimit

        def hold(kind: str, value: jax.Array) -> nnx.Variable:
            value = value.astype(param_dtype)
            return Frozen(value) if kind in frozen else parameter(value, kind)

        dt = jnp.exp(log_step_size(rngs.params(), (d_model, 1 if dt_tie else self.modes), dt_min, dt_max))
        self.inv_dt = hold("dt", TRANSFORMS[dt_transform][1](dt))
        parts = () if real else (2,)
        C = jax.random.normal(rngs.params(), (channels, d_model, self.modes, *parts))
        self.C = hold("C", C if real else C * 0.5**0.5)
        example, values = _initial_values(rngs.params(), init, B_init, d_state, copies, rank, real, conj_sym)
        A, P, B = values
        largest = np.max(-example[0], axis=(0, 1))
        for name, transform, value in zip(
            ("real_transform", "imag_transform"), (real_transform, imag_transform), largest, strict=True
        ):
            _check_reach(where, name, transform, float(value), f"the initial values of {init!r}")
        self.B = hold("B", B[None, ..., 0] if real else B[None])
        re, im = jnp.maximum(-A[..., 0], INITIAL_LEAST), -A[..., 1]
        self.A_real = hold("A", TRANSFORMS[real_transform][1](re))
        if not real:
            shaped = im if imag_transform == "none" else TRANSFORMS[imag_transform][1](jnp.maximum(im, INITIAL_LEAST))
            self.A_imag = hold("A", shaped)
        if rank:
            self.P = hold("P", P)

    @property
    def depends_on_length(self) -> bool:
        """Whether other taps follow from another length."""
        return False

    def step_sizes(self, rate: float | Array = 1.0) -> Float[jax.Array, "h n"]:
        """Returns the step sizes, float32."""
        dt = rate * positive(self.inv_dt[...], self.dt_transform)
        return jnp.broadcast_to(dt, (self.d_model, self.modes))

    def A(self) -> Inexact[jax.Array, "h n"]:
        """Returns the diagonal, float32 or complex64, with negative real parts."""
        re = -positive(self.A_real[...], self.real_transform)
        if self.real:
            return self._tile(re)
        im = self.A_imag[...].astype(jnp.float32)
        im = im if self.imag_transform == "none" else positive(im, self.imag_transform)
        return self._tile(jax.lax.complex(re, -im))

    def vectors(self) -> tuple[Inexact[jax.Array, "h n"], Inexact[jax.Array, "c h n"]]:
        """Returns B and C.

        C is without the modes beyond the band limit, and halved if all are stored, since kernels count them twice.
        """
        B, C = self._tile(self._numbers(self.B)[0]), self._numbers(self.C)
        if self.bandlimit is not None:
            turns = self.step_sizes() * jnp.abs(self.A().imag) / (2 * math.pi)
            C = jnp.where((turns < 0.5 * self.bandlimit)[None], C, 0)
        return B, C if self.conj_sym else 0.5 * C

    def init_state(self, batch: int) -> Inexact[jax.Array, "b h n"]:
        """Returns the state before the first token: zeros."""
        return jnp.zeros((batch, self.d_model, self.modes), jnp.float32 if self.real else jnp.complex64)

    def _numbers(self, stored: nnx.Variable) -> jax.Array:
        x = stored[...].astype(jnp.float32)
        return x if self.real else as_complex(x)

    def _tile(self, x: jax.Array) -> jax.Array:
        """Repeats copies (*r s n) over the features (*r h n), in turn."""
        return jnp.tile(x, (*[1] * (x.ndim - 2), self.d_model // x.shape[-2], 1))


def positive(x: Array, transform: str) -> Float[jax.Array, "..."]:
    """Returns a positive float32 array from an unbounded one.

    >>> [f"{x:.0e}" for x in positive(jnp.array([-1e9, 0.0, 1e9]), "exp")]
    ['1e-07', '1e+00', '1e+07']
    """
    return TRANSFORMS[transform][0](jnp.asarray(x, jnp.float32))


def as_complex(x: Float[Array, "*shape 2"]) -> Complex[jax.Array, "*shape"]:
    """Complex numbers from real and imaginary parts on a trailing axis.

    >>> as_complex(jnp.array([[1.0, 2.0]])).tolist()
    [(1+2j)]
    """
    return jax.lax.complex(x[..., 0], x[..., 1])


def as_real(z: Complex[Array, "*shape"]) -> Float[jax.Array, "*shape 2"]:
    """Returns the inverse of `as_complex`.

    >>> as_real(jnp.array([1 + 2j])).tolist()
    [[1.0, 2.0]]
    """
    return jnp.stack([jnp.real(z), jnp.imag(z)], axis=-1)


def _initial_values(
    key: jax.Array, name: str, B: str, size: int, copies: int, rank: int, real: bool, conj_sym: bool
) -> tuple[list[np.ndarray], list[jax.Array]]:
    """Returns A (s n 2), P (r s n 2) and B (s n 2) as `state_space` has them: an example on the host, and the values.

    The host draws what is random, by a callback, since layers are built under `jax.vmap`, where a key has no value.
    """
    count = size // 2 if conj_sym and not real else size
    size = 2 * size if real else size + size % 2  # modes come in pairs, of which one is stored
    options = dict(copies=copies, rank=max(rank, 1), B=B)

    def draw(seed: Array) -> list[np.ndarray]:
        values = state_space(name, size, **options, rng=np.random.default_rng(np.asarray(seed)))
        if not conj_sym and not real:
            values = [np.concatenate([x, x.conj()], axis=-1)[..., :count] for x in values]
        return [np.stack([x.real, x.imag], axis=-1).astype(np.float32) for x in values]

    example = draw(np.zeros(1, np.uint32))
    changed = draw(np.ones(1, np.uint32))
    if all(np.array_equal(x, y) for x, y in zip(example, changed, strict=True)):
        return example, [jnp.asarray(x) for x in example]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in example]
    return example, jax.pure_callback(draw, shapes, jax.random.bits(key, (4,)), vmap_method="sequential")


def _check_sizes(where: str, d_model: int, d_state: int, copies: int, pairs: bool) -> None:
    if pairs and d_state % 2:
        remedy = "Modes come in conjugate pairs; conj_sym=False stores them all."
        raise errors.bad_argument(where, "d_state", d_state, "even", remedy)
    if d_model % copies:
        raise errors.bad_argument(where, "copies", copies, f"a divisor of d_model = {d_model}")


def _check_names(where: str, dt: str, real: str, imag: str, frozen: Any, rank: int) -> tuple[str, ...]:
    if isinstance(frozen, str) or not isinstance(frozen, Iterable):
        remedy = f"Pass ({frozen!r},)." if isinstance(frozen, str) else "() freezes nothing."
        raise errors.bad_argument(where, "frozen", frozen, "a tuple of names", remedy)
    frozen = tuple(frozen)
    parts = ["dt", "A", "B", "C", *(["P"] if rank else [])]
    kinds = (("dt_transform", dt, [*TRANSFORMS]), ("real_transform", real, [*TRANSFORMS]))
    kinds += (("imag_transform", imag, ["none", *TRANSFORMS]),)
    kinds += tuple(("frozen parameter", name, parts) for name in frozen)
    for kind, name, known in kinds:
        if name not in known:
            raise ValueError(f"{where}: {errors.unknown_name(kind, name, known)}")
    return frozen


def _check_reach(where: str, name: str, transform: str, largest: float, what: str) -> None:
    """A sigmoid stays below one, and so must the values that it is to start from."""
    if transform == "sigmoid" and largest >= 1:
        wanted = f"a transform that reaches {what}, up to {largest:g}"
        raise errors.bad_argument(where, name, transform, wanted, "A sigmoid stays below 1; 'exp' does not.")
