"""The public kernel of S4: checks, choice of implementation, documentation."""

import jax
import jax.numpy as jnp

from ssmjax.ops import _checks, backend
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.ops._numerics.pairs import as_pair
from ssmjax.ops.dplr_kernel.matrices import check_dplr
from ssmjax.ops.dplr_kernel.reference import dplr_kernel_reference
from ssmjax.ops.dplr_kernel.xla import dplr_kernel_xla
from ssmjax.ops.vandermonde.api import example
from ssmjax.shapes import Array, Complex, Float

__all__ = ["dplr_kernel", "dplr_taps"]


def dplr_kernel(
    A: Complex[Array, "h n"],
    P: Complex[Array, "r h n"],
    B: Complex[Array, "*m h n"],
    C: Complex[Array, "*c h n"],
    dt: Float[Array, "h"],
    length: int,
    *,
    implementation: str = "auto",
) -> Float[jax.Array, "... l h"]:
    """The convolution kernel of S4, with a diagonal plus low-rank state matrix, one mode of each conjugate pair given.

        K_l = 2 Re C A_bar^l B_bar,    A_bar, B_bar by the bilinear rule from A - sum_r P_r P_r*,

    algorithm 1 of S4 (https://arxiv.org/abs/2111.00396), for the `length` with which `C` was made: `C` here is the
    paper's `C~ = C (I - A_bar^length)`, which S4 trains and stores. The roots of unity enter as `2 i tan(pi k / L)`, in
    real arithmetic, and the mode nearest to a frequency is left out of its sums: in float32 the error is a few 1e-7 of
    the largest value, at a length of 16,384 too, and that of the gradients at most a few 1e-5.

    Deterministic, in about `40 h l n` operations at rank 1. Nothing of size (h n l) is formed, forward or backward:
    blocks of frequencies are computed one after the other, and once more in the backward pass.

    Args:
        A: Diagonal, (h n), with Re A < 0.
        P: Low-rank part, (r h n), of any rank.
        B: Input vectors, (*m h n). With `s / dt + A s / 2` as one, `A` the whole matrix, the kernel is `C A_bar^(l+1)
            s`: the outputs that a carried state `s` adds.
        C: `C~`, (*c h n).
        dt: Step sizes, (h).
        length: The length of the kernel and of `C~`.
        implementation: See `ssmjax.ops.use_implementation`.

    Returns:
        K, (*m *c l h): a kernel for every input vector and every channel.

    Raises:
        ValueError: A shape, a dtype or the length is wrong, or a step is negative.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> A, P, B = jnp.full((1, 1), -1 + 1j), jnp.full((1, 1, 1), 0.5 + 0j), jnp.ones((1, 1), complex)
    >>> ssmjax.ops.dplr_kernel(A, P, B, B, jnp.array([0.5]), 4)[:, 0].round(3).tolist()
    [0.646, 0.208, 0.004, -0.058]
    """
    where = "dplr_kernel"
    length = _checks.as_length(where, length)
    check_dplr(where, A, P, dt, B=B, C=C)
    number = real_type(A, P, B, C, dt)
    A, P, B, C = (_checks.as_number(v, number) for v in (A, P, B, C))
    return dplr_taps(A, P, B, C, jnp.asarray(dt, number), length, implementation)


def dplr_taps(A, P, B, C, dt, length, implementation="auto"):
    """`dplr_kernel` of arguments of one precision that are known to be right, as those of a layer are."""
    lead = *B.shape[:-2], *C.shape[:-2]
    B, C = (v.reshape(-1, *A.shape) for v in (B, C))
    available = {"xla": None, "reference": None}
    if backend.resolve("dplr_kernel", implementation, available, arrays=(A, B, C)) == "reference":
        K = dplr_kernel_reference(A, P, B, C, dt, length)
    else:
        steps = jnp.broadcast_to(dt[:, None], A.shape)
        K = dplr_kernel_xla(*(as_pair(v) for v in (A, P, B, C)), steps, length)
    return jnp.swapaxes(K, -1, -2).reshape(*lead, length, A.shape[0])


def _example_dplr(key):
    C, A, dt, _ = example(key)
    return (A, 0.1 * C[None], C, C, dt, 7), {}


def _expected_dplr(A, P, B, C, dt, length):
    del P, B, C, dt
    return jax.ShapeDtypeStruct((length, A.shape[0]), jnp.float32)


backend.register_op(
    "dplr_kernel",
    dplr_kernel,
    implementations=("xla", "reference"),
    example=_example_dplr,
    expected=_expected_dplr,
)
