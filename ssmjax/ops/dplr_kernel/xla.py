"""The convolution kernel of S4, whose state matrix is diagonal plus low rank, from its values at the roots of unity.

Section 3 and appendix C.3 of S4 (https://arxiv.org/abs/2111.00396): with `C~ = C (I - A_bar^L)` the transform of the
kernel is `C~ (I - omega A_bar)^-1 B_bar`, a resolvent of the continuous matrix. With `c = cos(pi k / L)`,

    den_j x_j + c dt p_j y = dt b_j,    y = sum_j p_j* x_j,    K^ = e^(i pi k / L) sum_j c_j x_j,

where `den_j = 2 i sin(pi k / L) - c dt a_j`. Woodbury's identity eliminates every `x_j`, and what remains are sums
`<u, v>` of `dt u_j v_j / den_j`, the Cauchy products of `cauchy.py`:

    (I + c <P*, P>) y = <P*, B>,    K^ = e^(i pi k / L) (<C, B> - c <C, P> y).

Where one `den_j` all but vanishes, its terms in the sums are thousands of times the result and cancel in it: the modes
of LegT and FouT are undamped before the low-rank part is taken off, and gradients, which have the squares of those
terms, would be left with no digit in float32. So at each frequency the pair of modes nearest to it stays in the system,
as two more unknowns, s and t with `x = (s + i t) / 2` and `(s - i t) / 2`, whose coefficients are real; their
determinant is computed from the distance between node and pole.

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


class Modes(NamedTuple):
    """One of each pair of modes, and for each frequency, (h ... k) in place of (h ... n), the one that stays.

    Attributes:
        beta: Imaginary part of the pole dt A, (h 1 n).
        at: The pole as in `cauchy`, each field (h 1 n).
        dt: Step sizes, (h 1 n).
        B: Entries in the input vectors, (h m n).
        P: Entries in the low-rank part, (h r n).
        C: Entries in the output vectors, (h c n).
    """

    beta: jax.Array
    at: cauchy.Poles
    dt: jax.Array
    B: Pair
    P: Pair
    C: Pair


def dplr_kernel_xla(A: Pair, P: Pair, B: Pair, C: Pair, dt: jax.Array, length: int) -> jax.Array:
    """The kernels (m c h l); `A`, `dt` (h n), `P` (r h n), `B` (m h n), `C` (c h n); otherwise as `api.dplr_kernel`."""
    at = cauchy.poles(A, dt)
    of_h = lambda v: jnp.moveaxis(v, 1, 0)  # noqa: E731
    modes = Modes(dt * A[1], at, dt, *(tuple(map(of_h, v)) for v in (B, P, C)))
    modes = modes._replace(**{name: getattr(modes, name)[:, None] for name in ("beta", "dt")})
    modes = modes._replace(at=cauchy.Poles(*(v[:, None] for v in at)))
    blocks = {k: min(length // 2 + 1, max(16, elements // A[0].size)) for k, elements in BLOCK_ELEMENTS.items()}
    # Of a short kernel one block holds all frequencies on every platform: it has one program, which is traced once.
    runs = {block: functools.partial(_spectrum, length=length, block=block) for block in blocks.values()}
    by_platform = {platform: runs[block] for platform, block in blocks.items()}
    spectrum = jax.lax.platform_dependent(_weights(A, P, B, C, dt), at, modes, **by_platform)
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


def _spectrum(weights: jax.Array, at: cauchy.Poles, modes: Modes, *, length: int, block: int) -> Pair:
    """The transform of the kernel at the frequencies 0, ..., length // 2, as (h c m k), a block after the other."""
    frequencies = length // 2 + 1
    blocks = -(-frequencies // block)
    nodes = cauchy.nodes(length, weights.dtype)
    nodes = np.pad(nodes, ((0, 0), (0, blocks * block - frequencies)), mode="edge")
    nodes = jnp.asarray(nodes.reshape(4, blocks, block).swapaxes(0, 1))
    one_block = jax.checkpoint(functools.partial(_block, weights, at, modes), prevent_cse=False)
    # Which mode is nearest is found outside of it, and not once more in the backward pass.
    spectrum = jax.lax.map(lambda nodes: one_block(nodes, cauchy.nearest(at, cauchy.Nodes(*nodes))), nodes)
    return tuple(jnp.moveaxis(part, 0, -2).reshape(*part.shape[1:-1], -1)[..., :frequencies] for part in spectrum)


def _block(weights: jax.Array, at: cauchy.Poles, modes: Modes, nodes: jax.Array, nearest: jax.Array) -> Pair:
    """The transform at a block of nodes (4 k), where the pair of an index (h k) stays in the system: (h c m k)."""
    where = cauchy.Nodes(*nodes)
    sine, cosine = where.s[None, None], where.c[None, None]
    chosen = cauchy.one_hot(nearest, weights.shape[-1])
    kept = _kept(modes, chosen)
    (m, r, c), k = (v[0].shape[1] for v in (kept.B, kept.P, kept.C)), nodes.shape[-1]
    S_re, S_im = (part.reshape(part.shape[0], c + r, m + r, 2, k) for part in cauchy.cauchy(weights, at, where, chosen))
    sums = jax.lax.complex(
        -4 * sine[None] * S_im[..., 0, :] - 2 * cosine[None] * S_re[..., 1, :],
        4 * sine[None] * S_re[..., 0, :] - 2 * cosine[None] * S_im[..., 1, :],
    )
    y, s, t = _unknowns(sums[:, c:], kept, where)
    # K^ = <C, B> - c <C, P> y + (Re C) s - (Im C) t
    C_re, C_im = (part[:, :, None].astype(sums.dtype) for part in kept.C)
    K_cosine = cosine.astype(sums.dtype)[None]
    K = sums[:, :c, :m] + C_re * s[:, None] - C_im * t[:, None]
    for p in range(r):
        K = K - K_cosine * sums[:, :c, m + p][:, :, None] * y[p][:, None]  # an index beside a None gathers in older JAX
    K = K * jax.lax.complex(cosine, sine)[None]
    return K.real, K.imag


def _kept(modes: Modes, chosen: jax.Array) -> Modes:
    """The modes that are chosen (h n k) at each frequency."""
    leaves, tree = jax.tree.flatten(modes)
    together = cauchy.take(jnp.concatenate(leaves, axis=1), chosen)
    ends = np.cumsum([leaf.shape[1] for leaf in leaves])[:-1]
    kept = jax.tree.unflatten(tree, jnp.split(together, ends, axis=1))
    # The phase of a mode is free. With a real P and a pole near zero, t is all but decoupled, and nothing cancels.
    P = kept.P[0][:, :1], kept.P[1][:, :1]
    size = jnp.hypot(*P)
    safe = jnp.where(size > 0, size, 1)
    re, im = phase = jax.lax.stop_gradient((jnp.where(size > 0, P[0] / safe, 1), P[1] / safe))
    B, P = (times(v, (re, -im)) for v in (kept.B, kept.P))
    return kept._replace(B=B, P=P, C=times(kept.C, phase))


def _unknowns(sums: jax.Array, kept: Modes, where: cauchy.Nodes) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The y, s and t, (h m k) each.

    They solve

        (I + c <P*, P>) y - (Re P) s - (Im P) t = <P*, B>
        2 c dt (Re P) y + d s + c beta t = 2 dt Re B,    d = 2 i sin - c alpha
        2 c dt (Im P) y - c beta s + d t = 2 dt Im B

    y is eliminated, and s and t are found by Cramer's rule. Where the pole is near the node, `d^2 + (c beta)^2`
    cancels: it is computed as the product of the two denominators.

    Args:
        sums: `<P*, B>` and `<P*, P>`, (h r m+r k).
        kept: The pair.
        where: The frequencies.
    """
    m, r = kept.B[0].shape[1], kept.P[0].shape[1]
    sine, cosine = where.s[None, None], where.c[None, None]
    as_complex = lambda v: v.astype(sums.dtype)  # noqa: E731
    P, B = (tuple(map(as_complex, v)) for v in (kept.P, kept.B))
    matrix = [[as_complex(cosine[0]) * sums[:, p, m + q] + int(p == q) for q in range(r)] for p in range(r)]
    right = [jnp.concatenate([sums[:, p, :m], *(part[:, p : p + 1] for part in P)], axis=1) for p in range(r)]
    y = solve(matrix, right)  # of B, s and t
    dt = as_complex(2 * kept.dt)
    coupling = as_complex(cosine) * dt
    of_s, of_t = (coupling * sum(part[:, p : p + 1] * y[p] for p in range(r)) for part in P)
    (s_s, s_t), (t_s, t_t) = ((v[:, m : m + 1], v[:, m + 1 :]) for v in (of_s, of_t))
    f, g = dt * B[0] - of_s[:, :m], dt * B[1] - of_t[:, :m]
    d = jax.lax.complex(-cosine * kept.at.alpha, 2 * sine + jnp.zeros_like(kept.beta))
    turn = as_complex(cosine * kept.beta)
    both = jax.lax.complex(*cauchy.denominator(kept.at.alpha, kept.at.beta, kept.at.rest, where))
    s, t = _pair(((d, turn), ((s_s, s_t), (t_s, t_t)), (f, g)), both)
    return [v[:, :m] + v[:, m : m + 1] * s + v[:, m + 1 :] * t for v in y], s, t


@jax.custom_jvp
def _pair(system: tuple, both: jax.Array) -> Pair:
    """Solves `(d + s_s) s + (turn + s_t) t = f, (t_s - turn) s + (d + t_t) t = g`; `both` is `d^2 + turn^2`."""
    (d, turn), ((s_s, s_t), (t_s, t_t)), (f, g) = system
    scale = 1 / (both + d * (s_s + t_t) + turn * (s_t - t_s) + (s_s * t_t - s_t * t_s))
    return ((d + t_t) * f - (turn + s_t) * g) * scale, ((d + s_s) * g + (turn - t_s) * f) * scale


@_pair.defjvp
def _pair_jvp(primals, tangents):
    """The same system for the tangents. The quotient's own derivative cancels where `d` is far smaller than `s_s`."""
    (system, both), (((d, turn), ((s_s, s_t), (t_s, t_t)), (f, g)), _) = primals, tangents
    s, t = _pair(system, both)
    right = f - (d + s_s) * s - (turn + s_t) * t, g - (t_s - turn) * s - (d + t_t) * t
    return (s, t), _pair((*system[:2], right), both)
