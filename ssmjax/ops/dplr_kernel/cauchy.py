"""Cauchy products on the unit circle: `sum_n v_n / (z - a_n)` over conjugate pairs, at the nodes of the bilinear rule.

A discrete frequency `omega = exp(-2 pi i k / L)` is `z = 2 (1 - omega) / (1 + omega) = i w` with `w = 2 tan(pi k / L)`,
exactly. With `s` and `c` the sine and cosine of `pi k / L`, a pole `a = alpha + i beta` and its conjugate give, up to a
factor `1 / c`,

    v / (2 i s - c a) + v* / (2 i s - c a*) = (4 i s Re v - 2 c (alpha Re v + beta Im v)) R,
    1 / R = c^2 ((|beta| - w) (|beta| + w) + alpha^2) - 4 i alpha s c,

which is regular at every frequency, at the Nyquist one (s = 1, c = 0), where `z` is infinite, too. Near a resonance all
accuracy lies in `|beta| - w`, so that both are double-floats. Everything but `R` is real and the same at every
frequency, and the sums over n are matrix products with `R`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.ops._numerics import double_float as df
from ssmjax.ops._numerics.pairs import Pair

__all__ = ["Nodes", "Poles", "cauchy", "nodes", "poles"]

Nodes = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""`s`, `c` and `w` (a double-float) at some frequencies, each (k)."""

Poles = tuple[jax.Array, jax.Array, jax.Array]
"""`alpha`, `|beta|` and the rounding error of `|beta|`, each (h n)."""


def nodes(length: int, dtype: jnp.dtype) -> np.ndarray:
    """The `Nodes` of a kernel of this length, stacked (4 k), for k <= length // 2, made on the host in float64."""
    angle = np.pi * np.arange(length // 2 + 1) / length
    s, c = np.sin(angle), np.cos(angle)
    w = 2 * s / c  # finite at the Nyquist frequency, where the rounded cosine is 6e-17; c w is 2 there
    w_high = w.astype(dtype)
    return np.stack([s, c, w_high, w - w_high]).astype(dtype)


def poles(A: Pair, dt: jax.Array) -> Poles:
    """The poles `dt A` for `A` (h n) and steps of the same shape."""
    beta, rest = df.two_product(jnp.abs(A[1]), dt)
    return dt * A[0], beta, jax.lax.stop_gradient(rest)


@jax.custom_jvp
def cauchy(M: jax.Array, at: Poles, where: Nodes) -> Pair:
    """`sum_n M_mn R_n` for real `M` (h m n): its real and imaginary part, each (h m k)."""
    return _product(M, _response(at, where))


@cauchy.defjvp
def _cauchy_jvp(primals, tangents):
    """`dR = -R^2 d(1/R)`, linear in the tangents of the poles: the derivative is the same product, with `R^2`."""
    (M, at, where), (dM, (dalpha, dbeta, _), _) = primals, tangents
    (alpha, beta, _), (s, c, _, _) = at, where
    re, im = R = _response(at, where)
    # d(1/R) = c^2 (size) - 4 i s c (dalpha)
    size = 2 * (beta * dbeta + alpha * dalpha)
    weights = jnp.concatenate([M * size[:, None], M * dalpha[:, None]], axis=1)
    (size_re, alpha_re), (size_im, alpha_im) = (
        jnp.split(part, 2, axis=1) for part in _product(weights, (re * re - im * im, 2 * re * im))
    )
    by_size, by_alpha = (factor.reshape(1, 1, -1) for factor in (c * c, 4 * s * c))
    straight = _product(dM, R)
    tangent = (
        straight[0] - by_size * size_re - by_alpha * alpha_im,
        straight[1] - by_size * size_im + by_alpha * alpha_re,
    )
    return _product(M, R), tangent


def _response(at: Poles, where: Nodes) -> Pair:
    """`R` (h n k)."""
    alpha, beta, beta_rest = (v[:, :, None] for v in at)
    s, c, w, w_rest = (v.reshape(1, 1, -1) for v in where)
    distance = (beta - w) + (beta_rest - w_rest)
    re, im = (distance * (beta + w) + alpha * alpha) * (c * c), -4 * alpha * (s * c)
    scale = 1 / (re * re + im * im)
    return re * scale, -im * scale


def _product(M: jax.Array, R: Pair) -> Pair:
    both = jnp.einsum("hmn,hnk->hmk", M, jnp.concatenate(R, axis=-1), precision=jax.lax.Precision.HIGHEST)
    return tuple(jnp.split(both, 2, axis=-1))
