"""Discretized diagonal state spaces, one a feature: what S4D and DSS step with, and carry over a chunk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssmjax import ops
from ssmjax.ops._numerics.pairs import as_pair, from_pair, reciprocal
from ssmjax.ops._numerics.transition import held
from ssmjax.shapes import Array, Float, Inexact, Int, Mask

__all__ = [
    "EPSILON",
    "DiagonalRecurrence",
    "carried",
    "inverse",
    "last_state",
    "softmax_epsilon",
    "transition_rule",
]

EPSILON = 1e-7
"""In the code of DSS, `1 / z` is `conj(z) / (|z|^2 + EPSILON)`."""

TINY = 1e-18  # its square is a float32, too, which the gradient of a quotient divides by
"""Keeps the quotient finite for a mode of zero, whose weight is then zero, too."""


class DiagonalRecurrence(NamedTuple):
    """`x_t = A_bar x_(t-1) + B_bar u_t`, `y_t = 2 Re C x_t`, for every feature.

    Attributes:
        A_bar: (h n).
        B_bar: (h n).
        C: (c h n).
    """

    A_bar: Inexact[jax.Array, "h n"]
    B_bar: Inexact[jax.Array, "h n"]
    C: Inexact[jax.Array, "c h n"]

    @property
    def modes(self) -> int:
        """The size of a state, n."""
        return self.A_bar.shape[-1]

    def advance(
        self, u: Float[Array, "b l h"], real: Mask, begins: Mask, state: Inexact[Array, "b h n"]
    ) -> tuple[Float[jax.Array, "b c l h"], Inexact[jax.Array, "b h n"]]:
        """Returns the outputs of some steps and the state after them.

        A token that is not `real` leaves the state as it is; one that `begins` a sequence starts from zero.
        """
        here = real[..., None, None]
        decay = jnp.where(here, self.A_bar[None, None], 1)
        decay = jnp.where(begins[..., None, None], 0, decay)
        driven = jnp.where(here, self.B_bar[None, None] * u[..., None].astype(self.B_bar.dtype), 0)
        x, state = ops.linear_scan(decay, driven, state, return_state=True)
        return 2 * jnp.einsum("chn,blhn->bclh", self.C, x, precision="highest").real, state


def carried(
    recurrence: DiagonalRecurrence,
    A: Inexact[Array, "h n"],
    dt: Float[Array, "h n"],
    rule: str,
    state: Inexact[Array, "b h n"],
    length: int,
) -> Float[jax.Array, "b c l h"]:
    """Returns what a state adds to the outputs of the steps after it, `2 Re C A_bar^(l+1) x`.

    Args:
        recurrence: The discretized state space.
        A: The continuous one.
        dt: Its step sizes.
        rule: The `transition_rule` of its discretization.
        state: (b h n).
        length: How many steps, l.
    """
    weights = recurrence.C[None] * (recurrence.A_bar[None] * state)[:, None]
    return ops.vandermonde(weights, A, length, dt=dt, rule=rule)


def last_state(
    recurrence: DiagonalRecurrence,
    A: Inexact[Array, "h n"],
    dt: Float[Array, "h n"],
    rule: str,
    u: Float[Array, "b l h"],
    steps: Int[Array, " b"],
    state: Inexact[Array, "b h n"] | None,
) -> Inexact[jax.Array, "b h n"]:
    """The state after inputs that end at the last place of `u`, `steps` of them, zeros before; the rest as above."""
    x = recurrence.B_bar[None] * ops.vandermonde_state(u, A, dt=dt, rule=rule)
    return x if state is None else x + ops.diagonal_power(A, steps, u.shape[1], dt=dt, rule=rule) * state


def transition_rule(rule: str) -> str:
    """Returns the rule with the same A_bar among those that are no more than that, which a kernel is made with."""
    return "zoh" if rule in ("async", "softmax", "dss") else rule


def softmax_epsilon(
    A: Inexact[Array, "h n"], dt: Float[Array, "h n"], modes: Inexact[Array, "..."]
) -> Float[jax.Array, "h n"]:
    """Returns the `epsilon` with which `ops.softmax_kernel` divides as the code of DSS does.

    The code adds `EPSILON` to the square of `Lambda (e^(L x) - 1)`; the op adds its own to that of the sum of a mode's
    powers, `(e^(L x) - 1) / (e^x - 1)`. A mode that grows counts mirrored in time, as in both.

    Args:
        A: (h n), with `x = dt A`.
        dt: (h n).
        modes: Lambda, which weights are divided by.
    """
    re, im = (jnp.where(A.real > 0, -part, part) for part in (A.real, A.imag))
    lasting = held((re, im), dt)
    first = (lasting[0] ** 2 + lasting[1] ** 2) * (re**2 + im**2)  # |e^x - 1|^2
    return EPSILON / jnp.maximum(first * (modes.real**2 + modes.imag**2), TINY)


def inverse(z: Inexact[Array, "..."], epsilon: float = TINY) -> Inexact[jax.Array, "..."]:
    """`1 / z`, which stays finite near zero.

    Args:
        z: The numbers.
        epsilon: Added to the square of their size. Of the default the result knows nothing above 1e-5; at 1e-7 it is
            1e-4 too small, and below 1e-9 it goes back to zero.
    """
    pair = reciprocal(as_pair(z), epsilon)
    return from_pair(pair) if jnp.iscomplexobj(z) else pair[0]
