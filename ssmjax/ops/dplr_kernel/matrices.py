"""The discretized matrices of S4, dense: what its recurrent mode steps with."""

import jax
import jax.numpy as jnp

from ssmjax import errors
from ssmjax.ops import _checks
from ssmjax.shapes import Array, Complex, Float

__all__ = ["check_dplr", "dplr_matrices"]


def dplr_matrices(
    A: Complex[Array, "h n"], P: Complex[Array, "r h n"], B: Complex[Array, "*m h n"], dt: Float[Array, "h"]
) -> tuple[Complex[jax.Array, "h 2*n 2*n"], Complex[jax.Array, "*m h 2*n"]]:
    """The matrices of `x_k = A_bar x_(k-1) + B_bar u_k` for a state matrix that is diagonal plus low rank.

    The bilinear rule, equation 3 of S4 (https://arxiv.org/abs/2111.00396), for `A - sum_r P_r P_r*`:

        A_bar = (1 - dt A / 2)^-1 (1 + dt A / 2),    B_bar = dt (1 - dt A / 2)^-1 B.

    The state holds the n modes and then their n conjugates; the output is `C x` with `C` completed likewise.

    Args:
        A: Diagonal, (h n).
        P: Low-rank part, (r h n).
        B: Input vectors, (*m h n).
        dt: Step sizes, (h).

    Returns:
        A_bar, (h 2n 2n), and B_bar, (*m h 2n), complex64 (complex128 from complex128).

    Raises:
        ValueError: A shape or a dtype is wrong, or a step is negative.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> A, P, B = jnp.full((1, 1), -1 + 0j), jnp.zeros((1, 1, 1), complex), jnp.ones((1, 1), complex)
    >>> A_bar, B_bar = ssmjax.ops.dplr_matrices(A, P, B, jnp.array([0.5]))
    >>> A_bar.real.round(2).tolist(), B_bar.real.round(2).tolist()
    ([[[0.6, 0.0], [0.0, 0.6]]], [[0.4, 0.4]])
    """
    check_dplr("dplr_matrices", A, P, dt, B=B)
    A, P, B = (jnp.concatenate([v, jnp.conj(v)], axis=-1) for v in (A, P, B))
    eye = jnp.eye(A.shape[-1], dtype=A.dtype)[None]
    dt = dt.astype(A.dtype)
    half = 0.5 * dt[:, None, None] * (A[..., None] * eye - jnp.einsum("rhi,rhj->hij", P, P.conj(), precision="highest"))
    inverse = jnp.linalg.inv(eye - half)
    A_bar = jnp.einsum("hij,hjk->hik", inverse, eye + half, precision="highest")
    dt_B = (dt[None, :, None] * B.reshape(-1, *A.shape)).reshape(B.shape)
    return A_bar, jnp.einsum("hij,...hj->...hi", inverse, dt_B, precision="highest")


def check_dplr(where: str, A: Array, P: Array, dt: Array, **vectors: Array) -> None:
    """Raises `ValueError` unless these are A (h n), P (r h n), dt (h) and vectors (*b h n) of one system."""
    _checks.require_arrays(where, A=A, P=P, **vectors)
    _checks.require_dtype(where, {"A": A, "P": P, **vectors}, jnp.complexfloating, "a complex")
    if A.ndim != 2:
        raise errors.bad_shape(where, "A", A, "of rank 2, (h n)", "Repeat a shared A: jnp.broadcast_to(A, (h, n)).")
    if P.ndim != 3 or P.shape[1:] != A.shape:
        raise errors.bad_shape(where, "P", P, f"(r h n) with the (h n) of A, {tuple(A.shape)}", "For rank 1: P[None].")
    for name, v in vectors.items():
        if v.shape[-2:] != A.shape:
            raise errors.bad_shape(where, name, v, f"ending in the (h n) of A, {tuple(A.shape)}")
    _checks.require_steps(where, dt, {"(h)": A.shape[:1]})
