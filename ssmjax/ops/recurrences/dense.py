"""The dense recurrence of a diagonal plus low-rank state space, in real numbers and without cancellation.

A state of n modes `s` stands for itself and its conjugate, so that a real vector `x = [Re s, Im s]` holds all of it,
and `A - sum_r P_r P_r*` acts on that as a real matrix of size 2n, whose low-rank part is symmetric. What the functions
here pass on is never `A_bar` but `A_bar - 1`, and of its powers `A_bar^l - 1`: where dt is small `A_bar` is nearly one,
and the difference, on which S4's `C~ = C (1 - A_bar^L)` rests, would keep few of its digits.
"""

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.shapes import Array, Complex, Float

__all__ = ["advance", "bilinear", "powers", "real_matrix", "real_vector", "state_after"]


def real_matrix(A: Complex[Array, "h n"], P: Complex[Array, "r h n"]) -> Float[jax.Array, "h 2*n 2*n"]:
    """Returns the state matrix that acts on `[Re s, Im s]`."""
    re, im = (jax.vmap(jnp.diag)(part) for part in (A.real, A.imag))
    diagonal = jnp.concatenate([jnp.concatenate([re, -im], -1), jnp.concatenate([im, re], -1)], -2)
    low_rank = real_vector(P)
    return diagonal - 2 * _einsum("rhi,rhj->hij", low_rank, low_rank)


def real_vector(s: Complex[Array, "*b h n"]) -> Float[jax.Array, "*b h 2*n"]:
    """`[Re s, Im s]`."""
    return jnp.concatenate([s.real, s.imag], axis=-1)


def bilinear(
    A: Float[Array, "h m m"], B: Float[Array, "h m"], dt: Float[Array, " h"]
) -> tuple[Float[jax.Array, "h m m"], Float[jax.Array, "h m"]]:
    """`A_bar - 1 = dt (1 - dt A / 2)^-1 A` and `B_bar = dt (1 - dt A / 2)^-1 B`."""
    scaled = dt[:, None, None] * A
    eye = jnp.eye(A.shape[-1], dtype=A.dtype)[None]
    right = jnp.concatenate([scaled, (dt[:, None] * B)[..., None]], axis=-1)
    solved = jnp.linalg.solve(eye - 0.5 * scaled, right)
    return solved[..., :-1], solved[..., -1]


def powers(E: Float[Array, "h m m"], length: int) -> tuple[list[jax.Array], Float[jax.Array, "h m m"]]:
    """From `E = A_bar - 1`: the `A_bar^(2^k) - 1` for every bit of `length`, and `A_bar^length - 1`.

    With `(1 + E)^2 - 1 = 2 E + E^2` nothing cancels, however near to one `A_bar` is.
    """
    squares, total = [E], None
    for k in range(max(1, length.bit_length())):
        if k:
            squares.append(2 * squares[-1] + _product(squares[-1], squares[-1]))
        if length >> k & 1:
            total = squares[k] if total is None else total + squares[k] + _product(total, squares[k])
    return squares, jnp.zeros_like(E) if total is None else total


def advance(squares: list[jax.Array], steps: Array, state: Float[Array, "b h m"]) -> Float[jax.Array, "b h m"]:
    """`A_bar^steps` times a state, with a number of steps (b) of its own for every row.

    Args:
        squares: The `A_bar^(2^k) - 1` from `powers`, for as many bits as the largest number has.
        steps: (b) int.
        state: (b h m).
    """
    for k, E in enumerate(squares):
        wanted = (steps >> k & 1 == 1)[:, None, None]
        state = state + jnp.where(wanted, _einsum("hij,bhj->bhi", E, state), 0)
    return state


def state_after(
    squares: list[jax.Array], B_bar: Float[Array, "h m"], u: Float[Array, "b l h"]
) -> Float[jax.Array, "b h m"]:
    """Returns the state (b h m) after a sequence, from zero: `sum_l A_bar^(L-1-l) B_bar u_l`.

    A chunk of q steps adds the product of its inputs with the q vectors `A_bar^j B_bar`, and the state crosses it in
    one product with `A_bar^q`; q is about the square root of the length.
    """
    b, length, h = u.shape
    bits = min(len(squares), (length.bit_length() + 1) // 2)
    vectors = B_bar[..., None]  # (h m q), A_bar^j B_bar in the order of j
    for k in range(bits):
        vectors = jnp.concatenate([vectors, vectors + _product(squares[k], vectors)], axis=-1)
    q = vectors.shape[-1]
    chunks = -(-length // q)
    u = jnp.pad(u, ((0, 0), (chunks * q - length, 0), (0, 0))).reshape(b, chunks, q, h)
    driven = _einsum("hmq,bcqh->cbhm", vectors, u[:, :, ::-1])
    over = powers(squares[bits - 1], 2)[1]  # A_bar^q - 1
    over, driven, start = _compat.vary_alike((over, driven, jnp.zeros(driven.shape[1:], driven.dtype)))

    def cross(state, more):
        return state + _einsum("hij,bhj->bhi", over, state) + more, None

    return jax.lax.scan(cross, start, driven)[0]


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return _einsum("hij,hjk->hik", a, b)


def _einsum(pattern: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(pattern, *operands, precision=jax.lax.Precision.HIGHEST)
