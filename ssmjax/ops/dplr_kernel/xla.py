"""The convolution kernel of S4, whose state matrix is diagonal plus low rank, from its values at the roots of unity.

Section 3 and appendix C.3 of S4 (https://arxiv.org/abs/2111.00396): with `C~ = C (I - A_bar^L)` the transform of the
kernel is `C~ (I - omega A_bar)^-1 B_bar`, a resolvent of the continuous matrix. With `c = cos(pi k / L)`,

    den_j x_j + c dt p_j y = dt b_j,    y = sum_j p_j* x_j,    K^ = e^(i pi k / L) sum_j c_j x_j,

where `den_j = 2 i sin(pi k / L) - c dt a_j`. Woodbury's identity eliminates every `x_j`, and what remains are sums
`<u, v>` of `dt u_j v_j / den_j`, the Cauchy products of `cauchy.py`:

    (I + c <P*, P>) y = <P*, B>,    K^ = e^(i pi k / L) (<C, B> - c <C, P> y).

Here the pair of modes nearest zero, one for each feature, stays in the system as two more unknowns, s and t with
`x = (s + i t) / 2` and `(s - i t) / 2`, so that its coefficients are real. Where its `den` all but vanishes, as for the
undamped mode of HiPPO-FouT at k = 0, its terms in the sums are thousands of times the result, and float32 would be
left with three digits.

Frequencies are handled in blocks under `jax.checkpoint`: the (h n k) array of poles against nodes of a block lives only
while the block does, forward and backward.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.ops._numerics.elimination import solve
from ssmjax.ops._numerics.pairs import Pair, times
from ssmjax.ops.dplr_kernel import cauchy

__all__ = ["dplr_kernel_xla"]

BLOCK_ELEMENTS = {"cpu": 1 << 18, "default": 1 << 22}
"""How many pairs of a pole and a node a block holds: on a CPU they fit its cache, elsewhere they fill the machine."""


class Kept(NamedTuple):
    """The pair of modes that stays in the system, by the entries of one of the two.

    Attributes:
        alpha: Real part of the pole dt A, (h).
        beta: Its imaginary part, (h).
        B: dt times its entries in the input vectors, (h m).
        P: Its entries in the low-rank part, (h r).
        P_dt: dt times those.
        C: Its entries in the output vectors, (h c).
    """

    alpha: jax.Array
    beta: jax.Array
    B: Pair
    P: Pair
    P_dt: Pair
    C: Pair


def dplr_kernel_xla(A: Pair, P: Pair, B: Pair, C: Pair, dt: jax.Array, length: int) -> jax.Array:
    """The kernels (m c h l); `A`, `dt` (h n), `P` (r h n), `B` (m h n), `C` (c h n); otherwise as `api.dplr_kernel`."""
    nearest = jnp.argmin(A[0] ** 2 + A[1] ** 2, axis=-1, keepdims=True)
    chosen = (jnp.arange(A[0].shape[-1])[None] == nearest).astype(dt.dtype)
    run = functools.partial(_spectrum, length=length)
    spectrum = jax.lax.platform_dependent(
        _weights(A, P, B, C, dt) * (1 - chosen)[:, None],
        cauchy.poles(A, dt),
        _kept(chosen, A, P, B, C, dt),
        cpu=functools.partial(run, elements=BLOCK_ELEMENTS["cpu"]),
        default=functools.partial(run, elements=BLOCK_ELEMENTS["default"]),
    )
    K = jnp.fft.irfft(jax.lax.complex(*spectrum), n=length)  # (h c m l)
    return jnp.moveaxis(K, (2, 1, 0), (0, 1, 2))


def _weights(A: Pair, P: Pair, B: Pair, C: Pair, dt: jax.Array) -> jax.Array:
    """The real weights of `R`, (h, (c + r) (m + r) 2, n).

    Of `v = dt x y`, for every x in C and P* and every y in B and P, they are `Re v` and `alpha Re v + beta Im v`.
    """
    rows = jnp.concatenate([C[0], P[0]]), jnp.concatenate([C[1], -P[1]])
    columns = jnp.concatenate([B[0], P[0]]), jnp.concatenate([B[1], P[1]])
    dt, alpha, beta = (v[None, None] for v in (dt, dt * A[0], dt * A[1]))
    v = times(tuple(dt * part[:, None] for part in rows), tuple(part[None] for part in columns))
    both = jnp.stack([v[0], alpha * v[0] + beta * v[1]], axis=2)  # (c+r m+r 2 h n)
    return jnp.moveaxis(both.reshape(-1, *both.shape[3:]), 0, 1)


def _kept(chosen: jax.Array, A: Pair, P: Pair, B: Pair, C: Pair, dt: jax.Array) -> Kept:
    """The entries of the `chosen` modes, one-hot (h n)."""
    alpha, beta, dt = (jnp.sum(chosen * v, axis=-1) for v in (dt * A[0], dt * A[1], dt))

    def of_chosen(v: Pair) -> Pair:
        re, im = (jnp.moveaxis(jnp.sum(chosen[None] * part, axis=-1), 0, 1) for part in v)
        return re, im

    B, P, C = of_chosen(B), of_chosen(P), of_chosen(C)
    # The phase of a mode is free. With a real P and a pole near zero, t is all but decoupled, and nothing cancels.
    size = jnp.hypot(P[0][:, :1], P[1][:, :1])
    phase = P[0][:, :1] / jnp.where(size > 0, size, 1), P[1][:, :1] / jnp.where(size > 0, size, 1)
    phase = jax.lax.stop_gradient((jnp.where(size > 0, phase[0], 1), phase[1]))
    conjugate = phase[0], -phase[1]
    B, P, C = times(B, conjugate), times(P, conjugate), times(C, phase)
    B, P_dt = ((dt[:, None] * v[0], dt[:, None] * v[1]) for v in (B, P))
    return Kept(alpha, beta, B, P, P_dt, C)


def _spectrum(weights: jax.Array, at: cauchy.Poles, kept: Kept, *, length: int, elements: int) -> Pair:
    """The transform of the kernel at the frequencies 0, ..., length // 2, as (h c m k)."""
    frequencies = length // 2 + 1
    h, _, n = weights.shape
    block = min(frequencies, max(16, elements // (h * n)))
    blocks = -(-frequencies // block)
    nodes = cauchy.nodes(length, weights.dtype)
    nodes = np.pad(nodes, ((0, 0), (0, blocks * block - frequencies)), mode="edge")
    nodes = jnp.asarray(nodes.reshape(4, blocks, block).swapaxes(0, 1))
    one_block = jax.checkpoint(functools.partial(_block, weights, at, kept), prevent_cse=False)
    spectrum = jax.lax.map(one_block, nodes)
    return tuple(jnp.moveaxis(part, 0, -2).reshape(*part.shape[1:-1], -1)[..., :frequencies] for part in spectrum)


def _block(weights: jax.Array, at: cauchy.Poles, kept: Kept, nodes: jax.Array) -> Pair:
    """The transform at a block of nodes (4 k): (h c m k)."""
    (m, r, c), k = (v[0].shape[1] for v in (kept.B, kept.P, kept.C)), nodes.shape[-1]
    sine, cosine, _, _ = nodes.reshape(4, 1, 1, 1, k)
    S = cauchy.cauchy(weights, at, tuple(nodes))
    S_re, S_im = (part.reshape(part.shape[0], c + r, m + r, 2, k) for part in S)
    sums = jax.lax.complex(
        -4 * sine * S_im[..., 0, :] - 2 * cosine * S_re[..., 1, :],
        4 * sine * S_re[..., 0, :] - 2 * cosine * S_im[..., 1, :],
    )
    *y, s, t = (v[:, None] for v in solve(*_system(sums[:, c:], kept, nodes)))
    # K^ = <C, B> - c <C, P> y + (Re C) s - (Im C) t
    C_re, C_im = (part[:, :, None, None].astype(sums.dtype) for part in kept.C)
    K_cosine = cosine.astype(sums.dtype)
    K = sums[:, :c, :m] + C_re * s - C_im * t
    for p in range(r):
        K = K - K_cosine * sums[:, :c, m + p][:, :, None] * y[p]  # an index beside a None is a gather in older JAX
    K = K * jax.lax.complex(cosine, sine)
    return K.real, K.imag


def _system(sums: jax.Array, kept: Kept, nodes: jax.Array) -> tuple[list[list[jax.Array]], list[jax.Array]]:
    """The equations of y, s and t: the entries of the matrix, (h k) each, and the right-hand sides, (h m k) each.

        (I + c <P*, P>) y - (Re P) s - (Im P) t = <P*, B>
        2 c dt (Re P) y + (2 i sin - c alpha) s + c beta t = 2 dt Re B
        2 c dt (Im P) y - c beta s + (2 i sin - c alpha) t = 2 dt Im B

    Args:
        sums: `<P*, B>` and `<P*, P>`, (h r m+r k).
        kept: The pair.
        nodes: (4 k).
    """
    m, r = kept.B[0].shape[1], kept.P[0].shape[1]
    sine, cosine, _, _ = nodes[:, None]
    zero = jnp.zeros_like(sums[:, 0, 0])  # complex
    complex_cosine = cosine.astype(zero.dtype)

    def entry(of_h):
        return zero + of_h[:, None].astype(zero.dtype)

    of_y = [[complex_cosine * sums[:, p, m + q] + int(p == q) for q in range(r)] for p in range(r)]
    of_y = [[*row, entry(-kept.P[0][:, p]), entry(-kept.P[1][:, p])] for p, row in enumerate(of_y)]
    diagonal = jax.lax.complex(-cosine * kept.alpha[:, None], 2 * sine + zero.real)
    turn = complex_cosine * entry(kept.beta)
    of_s, of_t = ([complex_cosine * entry(2 * part[:, q]) for q in range(r)] for part in kept.P_dt)
    matrix = [*of_y, [*of_s, diagonal, turn], [*of_t, -turn, diagonal]]
    right = [sums[:, p, :m] for p in range(r)] + [
        2 * part[..., None].astype(zero.dtype) + zero[:, None] for part in kept.B
    ]
    return matrix, right
