"""One power of a discretized diagonal, with an exponent of its own for every row of a batch."""

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops import _checks
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops._numerics.pairs import as_pair, from_pair, times
from ssmjax.ops._numerics.powers import squares
from ssmjax.shapes import Array, Float, Inexact, Int

__all__ = ["diagonal_power"]


def diagonal_power(
    A: Inexact[Array, "h n"],
    steps: Int[Array, " b"],
    longest: int,
    *,
    dt: Float[Array, "h n"],
    rule: str = "zoh",
) -> Inexact[jax.Array, "b h n"]:
    """`A_bar^steps`, what is left of a state after some steps; the counterpart of `vandermonde_state`.

    The product of the squares `A_bar^(2^k)` that make up the number, each correct to the rounding of a float: the
    error does not grow with the number of steps.

    Args:
        A: Continuous diagonal, (h n), real or complex.
        steps: How many steps, (b) int, none negative.
        longest: The largest number of them that may come.
        dt: Step sizes, (h n).
        rule: The discretization, as in `vandermonde`.

    Returns:
        (b h n), float32 or complex64 as A is real or complex (float64, complex128 from float64).

    Raises:
        ValueError: A shape, a dtype or the rule is wrong, a step size is negative, or a number of steps is known to be
            negative or more than `longest`.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> A, dt = jnp.full((1, 1), -1.0), jnp.full((1, 1), 0.5)
    >>> ssmjax.ops.diagonal_power(A, jnp.array([0, 2]), 2, dt=dt).round(3).tolist()
    [[[1.0]], [[0.368]]]
    """
    where = "diagonal_power"
    _checks.require_rule(where, rule, _checks.TRANSITIONS)
    _checks.require_arrays(where, A=A, steps=steps)
    _checks.require_dtype(where, {"A": A}, jnp.inexact, "a floating or complex")
    if A.ndim != 2:
        raise errors.bad_shape(where, "A", A, "of rank 2, (h n)")
    _checks.require_steps(where, dt, {"(h n)": A.shape})
    longest = errors.as_int(where, "longest", longest, least=0, remedy=_checks.STATIC)
    steps = _checks.as_counts(where, "steps", steps, "(b)", "longest", longest)
    number = real_type(A, dt)
    re, im = (jnp.asarray(part, number) for part in as_pair(A))
    count = max(1, longest.bit_length())
    squared = squares((re, im), jnp.asarray(dt, number), rule, count)
    power = jnp.ones((len(steps), *A.shape), number), jnp.zeros((len(steps), *A.shape), number)
    for k in range(count):
        wanted = ((steps >> k) & 1 == 1)[:, None, None]
        more = times(power, tuple(part[k][None] for part in squared))
        power = tuple(jnp.where(wanted, new, old) for new, old in zip(more, power, strict=True))
    return from_pair(power) if jnp.iscomplexobj(A) else power[0]
