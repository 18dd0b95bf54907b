"""The recurrences that S4 steps with: dense, linear in the number of modes, and diagonal."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import _compat, errors
from ssmjax.ops.recurrences.diagonal import DiagonalRecurrence
from ssmjax.shapes import Array, Complex, Float, Mask

__all__ = [
    "DPLRRecurrence",
    "DenseRecurrence",
    "EigenRecurrence",
    "LinearRecurrence",
    "StepForm",
    "diagonal_form",
    "linear_form",
]

StepForm = Literal["dense", "linear", "diagonal"]
"""How S4 makes a step: with a matrix, with its low-rank structure, or in the eigenbasis where that is sound."""

LARGEST_CONDITION = 1e3
"""Of eigenvectors, above which the diagonal form would lose more than three of float32's seven digits."""


class DenseRecurrence(NamedTuple):
    """`x_t = A_bar x_(t-1) + B_bar u_t`, `y_t = C x_t`, with real `x = [Re s, Im s]` and m = 2n.

    Attributes:
        E: `A_bar - 1`, (h m m).
        B_bar: (h m).
        C: (c h m).
    """

    E: Float[jax.Array, "h m m"]
    B_bar: Float[jax.Array, "h m"]
    C: Float[jax.Array, "c h m"]

    @property
    def modes(self) -> int:
        """The size of a state, n."""
        return self.C.shape[-1] // 2

    def advance(
        self, u: Float[Array, "b l h"], real: Mask, begins: Mask, state: Complex[Array, "b h n"]
    ) -> tuple[Float[jax.Array, "b c l h"], Complex[jax.Array, "b h n"]]:
        """The outputs of some steps and the state after them; see `DiagonalRecurrence`."""

        def change(steps, x, u):
            return jnp.einsum("hij,bhj->bhi", steps.E, x, precision="highest") + steps.B_bar[None] * u[..., None]

        return _run(change, self, u, real, begins, state)


class LinearRecurrence(NamedTuple):
    """The same with O(r n) operations a step: `A - sum_r P_r P_r*` and the Woodbury form of `(1 - dt A / 2)^-1`.

    Attributes:
        A: (h n).
        P: (r h n).
        B: (h n), continuous.
        D: (h n), `1 / (2 / dt - A)`.
        R: (r h n), `(1 + 2 Re P* D P)^-1 P* D`.
        C: (c h m), as in `DenseRecurrence`.
    """

    A: Complex[jax.Array, "h n"]
    P: Complex[jax.Array, "r h n"]
    B: Complex[jax.Array, "h n"]
    D: Complex[jax.Array, "h n"]
    R: Complex[jax.Array, "r h n"]
    C: Float[jax.Array, "c h m"]

    @property
    def modes(self) -> int:
        """The size of a state, n."""
        return self.A.shape[-1]

    def advance(
        self, u: Float[Array, "b l h"], real: Mask, begins: Mask, state: Complex[Array, "b h n"]
    ) -> tuple[Float[jax.Array, "b c l h"], Complex[jax.Array, "b h n"]]:
        """As in `DenseRecurrence`."""

        def low_rank(P, Q, s):
            inner = 2 * jnp.einsum("rhn,bhn->brh", Q, s, precision="highest").real
            # of one dtype: jax 0.7 warns in the gradient of a product of complex and real numbers
            return jnp.einsum("rhn,brh->bhn", P, inner.astype(P.dtype), precision="highest")

        def change(steps, x, u):
            A, P, B, D, R, _ = steps
            s = jax.lax.complex(*jnp.split(x, 2, axis=-1))
            # A_bar - 1 = 2 (2 / dt - A)^-1 A: the change of a state, which is small, and not the state after it
            right = 2 * (A[None] * s - low_rank(P, P.conj(), s) + B[None] * u[..., None].astype(B.dtype))
            s = D[None] * (right - low_rank(P, R, right))
            return jnp.concatenate([s.real, s.imag], axis=-1)

        return _run(change, self, u, real, begins, state)


class EigenRecurrence(NamedTuple):
    """The same in the eigenbasis of `A_bar`, with O(m) operations a step and states of its own.

    `enter` makes its state of a layer's, once before many steps, and `leave` goes back.

    Attributes:
        A_bar: (h m), the eigenvalues.
        B_bar: (h m).
        C: (c h m), halved, since a diagonal recurrence counts twice.
        V: (h m m), the eigenvectors, in columns.
        V_inverse: (h m m).
    """

    A_bar: Complex[jax.Array, "h m"]
    B_bar: Complex[jax.Array, "h m"]
    C: Complex[jax.Array, "c h m"]
    V: Complex[jax.Array, "h m m"]
    V_inverse: Complex[jax.Array, "h m m"]

    @property
    def modes(self) -> int:
        """The size of a state."""
        return self.A_bar.shape[-1]

    def advance(
        self, u: Float[Array, "b l h"], real: Mask, begins: Mask, state: Complex[Array, "b h m"]
    ) -> tuple[Float[jax.Array, "b c l h"], Complex[jax.Array, "b h m"]]:
        """As in `DenseRecurrence`, but for the state's basis."""
        return DiagonalRecurrence(self.A_bar, self.B_bar, self.C).advance(u, real, begins, state)

    def enter(self, state: Complex[Array, "b h n"]) -> Complex[jax.Array, "b h m"]:
        """The state of a layer, in this basis."""
        x = jnp.concatenate([state.real, state.imag], axis=-1).astype(state.dtype)
        return jnp.einsum("hij,bhj->bhi", self.V_inverse, x, precision="highest")

    def leave(self, state: Complex[Array, "b h m"]) -> Complex[jax.Array, "b h n"]:
        """The inverse of `enter`."""
        x = jnp.einsum("hij,bhj->bhi", self.V, state, precision="highest").real
        return jax.lax.complex(*jnp.split(x, 2, axis=-1))


DPLRRecurrence = DenseRecurrence | LinearRecurrence | EigenRecurrence
"""What `DPLRKernel.recurrence` returns."""


def linear_form(system: Any, C: Float[Array, "c h m"]) -> LinearRecurrence:
    """The linear form of a continuous `s4.DPLR` and an output row."""
    A, P, B, _, dt = system
    D = 1 / ((2 / dt[:, None]).astype(A.dtype) - A)
    P_D = P.conj() * D[None]
    inner = jnp.eye(len(P))[None] + 2 * jnp.einsum("rhn,shn->hrs", P_D, P, precision="highest").real
    R = jnp.linalg.solve(inner.astype(P.dtype), jnp.swapaxes(P_D, 0, 1))
    return LinearRecurrence(A, P, B, D, jnp.swapaxes(R, 0, 1), C)


def diagonal_form(steps: DenseRecurrence) -> EigenRecurrence:
    """The recurrence in the eigenbasis of `A_bar`, found on the host in float64.

    Raises:
        ValueError: The eigenvectors are too nearly parallel, or the arrays have no values, under `jax.jit`.
    """
    if isinstance(steps.E, jax.core.Tracer):
        raise errors.bad_argument("S4", "form", "diagonal", "'dense' or 'linear' under jax.jit", "Build it before.")
    E, B, C = (np.asarray(x, np.float64) for x in steps)
    values, V = np.linalg.eig(E)
    condition = float(np.linalg.cond(V).max())
    if condition > LARGEST_CONDITION:
        remedy = (
            f"The eigenvectors' condition number is {condition:.0e}, the largest that is sound {LARGEST_CONDITION:.0e}."
        )
        raise errors.bad_argument("S4", "form", "diagonal", "'dense' or 'linear' for this initialization", remedy)
    V_inverse = np.linalg.inv(V)
    B = np.einsum("hij,hj->hi", V_inverse, B)
    C = 0.5 * np.einsum("chi,hij->chj", C, V)
    return EigenRecurrence(*(jnp.asarray(x, jnp.complex64) for x in (1 + values, B, C, V, V_inverse)))


def _run(change, recurrence, u, real, begins, state):
    """A scan of `x + change(recurrence, x, u)`, from a complex state and to one."""
    recurrence, u, real, begins, state = _compat.vary_alike((recurrence, u, real, begins, state))

    def step(x, inputs):
        u, real, begins = inputs
        x = jnp.where(begins[:, None, None], 0, x)
        x = jnp.where(real[:, None, None], x + change(recurrence, x, u), x)
        return x, jnp.einsum("chm,bhm->bch", recurrence.C, x, precision="highest")

    x = jnp.concatenate([state.real, state.imag], axis=-1)
    x, y = jax.lax.scan(step, x, tuple(jnp.swapaxes(v, 0, 1) for v in (u, real, begins)))
    return jnp.moveaxis(y, 0, 2), jax.lax.complex(*jnp.split(x, 2, axis=-1))
