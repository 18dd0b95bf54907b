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

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.ops._numerics import double_float as df
from ssmjax.ops._numerics.pairs import Pair

__all__ = ["Nodes", "Poles", "cauchy", "denominator", "nearest", "nodes", "one_hot", "poles", "take"]


class Nodes(NamedTuple):
    """Some frequencies, each field (k).

    Attributes:
        s: Sine of `pi k / L`.
        c: Its cosine.
        w: Twice its tangent.
        rest: The rounding error of `w`.
    """

    s: jax.Array
    c: jax.Array
    w: jax.Array
    rest: jax.Array


class Poles(NamedTuple):
    """Some poles `dt A`, each field (h n).

    Attributes:
        alpha: The real part.
        beta: The size of the imaginary part.
        rest: The rounding error of `beta`.
    """

    alpha: jax.Array
    beta: jax.Array
    rest: jax.Array


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
    return Poles(dt * A[0], beta, jax.lax.stop_gradient(rest))


def nearest(at: Poles, where: Nodes) -> jax.Array:
    """The index of the pole that is nearest to each node, (h k)."""
    at = jax.tree.map(jax.lax.stop_gradient, at)
    alpha, beta, rest = (v[:, :, None] for v in at)
    distance = _distance(beta, rest, *(v.reshape(1, 1, -1) for v in where[2:]))
    size = distance * distance + alpha * alpha
    # The first of all but equals, by two reductions that are vector instructions where `argmin` is a loop. `size` may
    # be computed twice, and not be rounded alike.
    n, tiny = size.shape[1], jnp.finfo(size.dtype).tiny
    index = jnp.arange(n, dtype=jnp.int32)[None, :, None]
    least = jnp.min(size, axis=1, keepdims=True)
    return jnp.min(jnp.where(size <= 1.001 * least + tiny, index, n), axis=1)


def one_hot(index: jax.Array, n: int) -> jax.Array:
    """(h n k) for an index (h k) of n: true where it points."""
    return jnp.arange(n, dtype=index.dtype)[None, :, None] == index[:, None]


def take(rows: jax.Array, chosen: jax.Array) -> jax.Array:
    """The entries (h m k) of `rows` (h m n) that are chosen (h n k): a product, whose transpose is no scatter."""
    return jnp.einsum("hmn,hnk->hmk", rows, chosen.astype(rows.dtype), precision=jax.lax.Precision.HIGHEST)


def denominator(alpha: jax.Array, beta: jax.Array, rest: jax.Array, where: Nodes) -> Pair:
    """`1 / R` at poles that broadcast with the nodes (k), which are along the last axis."""
    s, c, w, w_rest = (v.reshape(*[1] * (alpha.ndim - 1), -1) for v in where)
    re = (_distance(beta, rest, w, w_rest) * (beta + w) + alpha * alpha) * (c * c)
    return re, -4 * alpha * (s * c)


@jax.custom_jvp
def cauchy(M: jax.Array, at: Poles, where: Nodes, without: jax.Array) -> Pair:
    """`sum_n M_mn R_n` for real `M` (h m n): its real and imaginary part, each (h m k).

    The poles that are `without` (h n k) are left out.
    """
    return _product(M, _response(at, where, without))


@cauchy.defjvp
def _cauchy_jvp(primals, tangents):
    """`dR = -R^2 d(1/R)`, linear in the tangents of the poles: the derivative is the same product, with `R^2`."""
    (M, at, where, without), (dM, (dalpha, dbeta, _), *_) = primals, tangents
    re, im = R = _response(at, where, without)
    # d(1/R) = c^2 (size) - 4 i s c (dalpha)
    size = 2 * (at.beta * dbeta + at.alpha * dalpha)
    weights = jnp.concatenate([M * size[:, None], M * dalpha[:, None]], axis=1)
    (size_re, alpha_re), (size_im, alpha_im) = (
        jnp.split(part, 2, axis=1) for part in _product(weights, (re * re - im * im, 2 * re * im))
    )
    by_size, by_alpha = (factor.reshape(1, 1, -1) for factor in (where.c * where.c, 4 * where.s * where.c))
    straight = _product(dM, R)
    tangent = (
        straight[0] - by_size * size_re - by_alpha * alpha_im,
        straight[1] - by_size * size_im + by_alpha * alpha_re,
    )
    return _product(M, R), tangent


def _distance(beta, beta_rest, w, w_rest):
    return (beta - w) + (beta_rest - w_rest)


def _response(at: Poles, where: Nodes, without: jax.Array) -> Pair:
    """`R` (h n k)."""
    re, im = denominator(*(v[:, :, None] for v in at), where)
    scale = jnp.where(without, 0, 1 / jnp.where(without, 1, re * re + im * im))
    return re * scale, -im * scale


def _product(M: jax.Array, R: Pair) -> Pair:
    both = jnp.einsum("hmn,hnk->hmk", M, jnp.concatenate(R, axis=-1), precision=jax.lax.Precision.HIGHEST)
    return tuple(jnp.split(both, 2, axis=-1))
