"""The definition of the kernel of a diagonal plus low-rank state space."""

import jax
import jax.numpy as jnp

from ssmjax.ops.dplr_kernel.matrices import dplr_matrices

__all__ = ["dplr_kernel_reference"]


def dplr_kernel_reference(A, P, B, C, dt, length):
    """The kernels (m c h l) with the transform `C~ (I - omega A_bar)^-1 B_bar` at the roots of unity, densely."""
    A_bar, B_bar = dplr_matrices(A, P, B, dt)
    eye = jnp.eye(A_bar.shape[-1], dtype=A_bar.dtype)[None]
    omega = jnp.exp(-2j * jnp.pi / length * jnp.arange(length // 2 + 1).astype(A_bar.dtype))
    states = jax.lax.map(lambda omega: jnp.linalg.solve(eye - omega * A_bar, jnp.moveaxis(B_bar, 0, -1)), omega)
    spectrum = jnp.einsum("chn,khnm->mchk", jnp.concatenate([C, C.conj()], axis=-1), states, precision="highest")
    return jnp.fft.irfft(spectrum, n=length)
