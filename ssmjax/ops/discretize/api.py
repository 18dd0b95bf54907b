"""Discretizations of `x' = A x + B u` with a diagonal `A`, by name.

rule       A_bar                            gain, with B_bar = gain B
zoh        exp(dt A)                        (exp(dt A) - 1) / A         the input is constant over a step
bilinear   (1 + dt A / 2)/(1 - dt A / 2)    dt / (1 - dt A / 2)         trapezoidal; stable wherever Re A < 0
euler      1 + dt A                         dt                          stable only where |1 + dt A| < 1
impulse    exp(dt A)                        dt                          an impulse of weight dt; Mamba's rule
dirac      exp(dt A)                        1                           an impulse of weight 1
async      exp(dt A)                        (exp(dt_input A) - 1) / A   an input lasts dt_input, whatever dt is
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops import _checks
from ssmjax.ops._numerics.pairs import reciprocal
from ssmjax.ops._numerics.transition import held, transition
from ssmjax.shapes import Array, Float, Inexact

__all__ = ["discretize", "discretized"]


def discretize(
    A: Inexact[Array, "..."],
    dt: Float[Array, "..."],
    rule: str = "zoh",
    *,
    dt_input: Float[Array, "..."] | None = None,
) -> tuple[Inexact[jax.Array, "..."], Inexact[jax.Array, "..."]]:
    """Computes the diagonal `A_bar` of `x_k = A_bar x_(k-1) + B_bar u_k`, and the gain with `B_bar = gain B`.

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
    return discretized(A, dt, rule, dt_input)


def discretized(
    A: Inexact[Array, "..."], dt: Float[Array, "..."], rule: str, dt_input: Float[Array, "..."] | None = None
) -> tuple[Inexact[jax.Array, "..."], Inexact[jax.Array, "..."]]:
    """`discretize` of arguments that are known to be right, as those of a layer are."""
    shape = jnp.broadcast_shapes(A.shape, dt.shape, () if dt_input is None else dt_input.shape)
    arrays = (A.real, A.imag, dt, dt if dt_input is None else dt_input)
    number = np.result_type(arrays[0].dtype, dt.dtype, np.float32)
    re, im, dt, dt_input = (jnp.broadcast_to(jnp.asarray(v, number), shape) for v in arrays)
    if rule in ("zoh", "async"):
        gain = held((re, im), dt if rule == "zoh" else dt_input)
    elif rule == "bilinear":
        gain = tuple(dt * part for part in reciprocal((1 - 0.5 * dt * re, -0.5 * dt * im)))
    else:
        gain = dt if rule in ("euler", "impulse") else jnp.ones_like(dt), jnp.zeros_like(dt)
    pairs = transition((re, im), dt, rule), gain
    return tuple(jax.lax.complex(*pair) if jnp.iscomplexobj(A) else pair[0] for pair in pairs)


def _check(A, dt, rule, dt_input):
    where = "discretize"
    _checks.require_rule(where, rule)
    _checks.require_arrays(where, A=A, dt=dt)
    _checks.require_dtype(where, {"A": A}, jnp.inexact, "a floating or complex")
    _checks.require_dtype(where, {"dt": dt, "dt_input": dt_input}, jnp.floating, "a real floating")
    if (rule == "async") != (dt_input is not None):
        wanted = "given with the rule 'async', and with no other"
        raise errors.bad_argument(where, "dt_input", None if dt_input is None else errors.shape_of(dt_input), wanted)
    _checks.require_step(where, "dt", dt)
    _checks.require_step(where, "dt_input", dt_input)
    for name, v in (("dt", dt), ("dt_input", dt_input)):
        if v is not None and not _broadcasts(A.shape, v.shape):
            remedy = "Add axes: dt[:, None] for steps (h) with A (h n)."
            raise errors.bad_shape(where, name, v, f"broadcastable with A {tuple(A.shape)}", remedy)
    if dt_input is not None and not _broadcasts(dt.shape, dt_input.shape):
        raise errors.bad_shape(where, "dt_input", dt_input, f"broadcastable with dt {tuple(dt.shape)}")


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(p == q or 1 in (p, q) for p, q in zip(a[::-1], b[::-1], strict=False))
