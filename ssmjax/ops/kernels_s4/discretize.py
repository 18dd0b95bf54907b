"""Discretizations of `x' = A x + B u` with a diagonal `A`, by name.

rule       A_bar                            gain, with B_bar = gain B
zoh        exp(dt A)                        (exp(dt A) - 1) / A         the input is constant over a step
bilinear   (1 + dt A / 2)/(1 - dt A / 2)    dt / (1 - dt A / 2)         trapezoidal; stable wherever Re A < 0
euler      1 + dt A                         dt                          stable only where |1 + dt A| < 1
impulse    exp(dt A)                        dt                          an impulse of weight dt; Mamba's rule
dirac      exp(dt A)                        1                           an impulse of weight 1
async      exp(dt A)                        (exp(dt_input A) - 1) / A   an input lasts dt_input, whatever dt is
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops import _checks
from ssmjax.ops.kernels_s4.angle import reduced_angle
from ssmjax.ops.kernels_s4.pairs import Pair, from_pair, reciprocal, times
from ssmjax.shapes import Array, Float, Inexact

__all__ = [
    "RULES",
    "TRANSITIONS",
    "Rule",
    "check_rule",
    "check_step",
    "check_steps",
    "discretize",
    "held",
    "power_sum",
    "transition",
]

Rule = Literal["zoh", "bilinear", "euler", "impulse", "dirac", "async"]
"""The names a `rule=` argument takes."""

RULES: tuple[str, ...] = get_args(Rule)

TRANSITIONS = tuple(rule for rule in RULES if rule != "async")
"""The rules that need one step size, whose `A_bar` a power or a kernel is made of."""


def discretize(
    A: Inexact[Array, "..."],
    dt: Float[Array, "..."],
    rule: str = "zoh",
    *,
    dt_input: Float[Array, "..."] | None = None,
) -> tuple[Inexact[jax.Array, "..."], Inexact[jax.Array, "..."]]:
    """The diagonal `A_bar` of `x_k = A_bar x_(k-1) + B_bar u_k`, and the gain with `B_bar = gain B`.

    `zoh` and `bilinear` are those of S4D (section 3.2, https://arxiv.org/abs/2206.11893), `impulse` of Mamba (section
    3.6, https://arxiv.org/abs/2312.00752), `dirac` and `async` of Event-SSM (https://arxiv.org/abs/2404.18508). The
    gain is returned instead of `B_bar`, so that steps of varying size scale `B u`, and nothing of size (l n d) is
    formed. Computed in float32 at least, with relative errors of a few 1e-7 for any size of `dt A`: the angle is
    reduced with extra bits, and `exp(x) - 1` does not cancel near zero.

    Args:
        A: Continuous diagonal, of any shape, real or complex.
        dt: Step sizes, broadcastable with `A`; not negative.
        rule: "zoh", "bilinear", "euler", "impulse", "dirac" or "async".
        dt_input: How long an input lasts; for "async" only, and required there.

    Returns:
        A_bar and gain, of the common shape of `A` and `dt`, complex if `A` is.

    Raises:
        ValueError: The rule is unknown, a shape or a dtype is wrong, a step is negative, or `dt_input` is missing or
            not wanted.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> A_bar, gain = ssmjax.ops.discretize(jnp.array([-1.0, -2.0]), jnp.array(0.5), "bilinear")
    >>> A_bar.round(4).tolist(), gain.round(4).tolist()
    ([0.6, 0.3333], [0.4, 0.3333])
    """
    _check(A, dt, rule, dt_input)
    shape = jnp.broadcast_shapes(A.shape, dt.shape, () if dt_input is None else dt_input.shape)
    number = jnp.promote_types(jnp.promote_types(A.real.dtype, dt.dtype), jnp.float32)
    arrays = (A.real, A.imag, dt, dt if dt_input is None else dt_input)
    re, im, dt, dt_input = (jnp.broadcast_to(jnp.asarray(v, number), shape) for v in arrays)
    pairs = transition((re, im), dt, rule), _gain((re, im), dt, rule, dt_input)
    return tuple(from_pair(pair) if jnp.iscomplexobj(A) else pair[0] for pair in pairs)


def transition(A: Pair, dt: jax.Array, rule: str) -> Pair:
    """`A_bar` from the parts of `A` and steps of the same shape."""
    if rule == "euler":
        return 1 + dt * A[0], dt * A[1]
    if rule == "bilinear":
        half = 0.5 * dt * A[0], 0.5 * dt * A[1]
        return times((1 + half[0], half[1]), reciprocal((1 - half[0], -half[1])))
    angle, size = reduced_angle(A[1], dt), jnp.exp(dt * A[0])
    return size * jnp.cos(angle), size * jnp.sin(angle)


def check_rule(where: str, rule: str, allowed: tuple[str, ...] = RULES) -> None:
    """Raises `ValueError` unless `rule` is one of the allowed names."""
    if rule not in allowed:
        raise ValueError(f"{where}: {errors.unknown_name('rule', rule, allowed)}")


def check_steps(where: str, dt: Any, forms: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `ValueError` unless `dt` is an array of step sizes in one of some shapes, by their letters."""
    if getattr(dt, "shape", None) not in forms.values():
        wanted = " or ".join(f"{letters} = {sizes}" for letters, sizes in forms.items())
        remedy = f"One step size for all is jnp.full({next(iter(forms.values()))}, dt)."
        raise errors.bad_shape(where, "dt", dt, wanted, remedy)
    _checks.require_dtype(where, {"dt": dt}, jnp.floating, "a real floating")
    check_step(where, "dt", dt)


def check_step(where: str, name: str, dt: Array | None) -> None:
    """Raises `ValueError` if a step is negative, as far as its value is known: not while a function is traced."""
    values = None if dt is None or not dt.size else _checks.known_values(dt)
    if values is None:
        return
    least = values.min()  # not in JAX, which would trace it into a function that is being compiled
    if not least >= 0:  # NaN, too
        remedy = "A step size is kept positive by its parametrization, such as exp(log_dt) or softplus."
        raise errors.bad_argument(where, name, float(least), "positive", remedy)


def _gain(A: Pair, dt: jax.Array, rule: str, dt_input: jax.Array) -> Pair:
    """The factor of `B` in `B_bar`."""
    if rule in ("zoh", "async"):
        return held(A, dt if rule == "zoh" else dt_input)
    if rule == "bilinear":
        re, im = reciprocal((1 - 0.5 * dt * A[0], -0.5 * dt * A[1]))
        return dt * re, dt * im
    return dt if rule in ("euler", "impulse") else jnp.ones_like(dt), jnp.zeros_like(dt)


def held(A: Pair, dt: jax.Array, steps: int | jax.Array = 1) -> Pair:
    """`(exp(x) - 1) / A` for `x = steps dt A`: the response to an input held over that time; `steps dt` at A = 0.

    `steps` is a whole number, or an array of them that broadcasts with A.
    """
    steps = jnp.asarray(steps, dt.dtype)
    x = steps * dt * A[0], steps * dt * A[1]
    small = x[0] ** 2 + x[1] ** 2 < 0.01
    # In the branch not taken, a value at which nothing divides by zero: a NaN there would enter the gradient.
    series = _series(tuple(jnp.where(small, part, 0.0) for part in x))
    safe = jnp.where(small, -1.0, A[0]), jnp.where(small, 0.0, A[1])
    angle, decay = reduced_angle(safe[1], dt, steps), steps * dt * safe[0]
    minus_one = jnp.expm1(decay) * jnp.cos(angle) - 2 * jnp.sin(0.5 * angle) ** 2, jnp.exp(decay) * jnp.sin(angle)
    closed = times(minus_one, reciprocal(safe))
    return tuple(jnp.where(small, steps * dt * near, far) for near, far in zip(series, closed, strict=True))


def power_sum(A: Pair, dt: jax.Array, count: int | jax.Array) -> Pair:
    """`sum_(j < count) exp(j dt A)`, which is `(exp(count x) - 1) / (exp(x) - 1)` for `x = dt A`."""
    return times(held(A, dt, count), reciprocal(held(A, dt)))


def _series(x: Pair) -> Pair:
    """`(exp(x) - 1) / x` for |x| < 0.1, by seven terms of its Taylor series."""
    re, im = jnp.ones_like(x[0]), jnp.zeros_like(x[0])
    for k in range(7, 1, -1):
        re, im = times((re, im), (x[0] / k, x[1] / k))
        re = 1 + re
    return re, im


def _check(A, dt, rule, dt_input):
    where = "discretize"
    check_rule(where, rule)
    _checks.require_arrays(where, A=A, dt=dt)
    _checks.require_dtype(where, {"A": A}, jnp.inexact, "a floating or complex")
    _checks.require_dtype(where, {"dt": dt, "dt_input": dt_input}, jnp.floating, "a real floating")
    if (rule == "async") != (dt_input is not None):
        wanted = "given with the rule 'async', and with no other"
        raise errors.bad_argument(where, "dt_input", None if dt_input is None else errors.shape_of(dt_input), wanted)
    check_step(where, "dt", dt)
    check_step(where, "dt_input", dt_input)
    for name, v in (("dt", dt), ("dt_input", dt_input)):
        if v is not None and not _broadcasts(A.shape, v.shape):
            remedy = "Add axes: dt[:, None] for steps (h) with A (h n)."
            raise errors.bad_shape(where, name, v, f"broadcastable with A {tuple(A.shape)}", remedy)
    if dt_input is not None and not _broadcasts(dt.shape, dt_input.shape):
        raise errors.bad_shape(where, "dt_input", dt_input, f"broadcastable with dt {tuple(dt.shape)}")


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(p == q or 1 in (p, q) for p, q in zip(a[::-1], b[::-1], strict=False))
