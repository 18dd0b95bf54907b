"""What the kernels of diagonal state spaces share: S4D's and DSS's call, their recurrence, and how a state goes on."""

import jax
from flax import nnx

from ssmjax import errors
from ssmjax.layers.common.checks import check_rate, refuse_over
from ssmjax.ops._checks import STATIC
from ssmjax.ops.recurrences.diagonal import DiagonalRecurrence, carried, last_state
from ssmjax.shapes import Array, Float, Inexact, Int

__all__ = ["DiagonalTaps"]


class DiagonalTaps(nnx.Module):
    """A kernel that a layer calls by `taps`, `discretized`, `carried` and `last_state`, of a rate that it has checked.

    A subclass has the `transition_rule` of its discretization as its `transition` and defines `taps`, `discretized`,
    `scaled` and `depends_on_length`. Its users call it, or `recurrence`, and have their arguments checked.
    """

    layer: str
    transition: str

    def taps(self, length: int, rate: float | Array, over: Array | None = None) -> Float[jax.Array, "*b c l h"]:
        """Returns the kernels."""
        raise NotImplementedError

    def discretized(self, rate: float | Array) -> DiagonalRecurrence:
        """Returns the discretized state space."""
        raise NotImplementedError

    def scaled(self, rate: float | Array = 1.0) -> tuple[Inexact[jax.Array, "h n"], Float[jax.Array, "h n"]]:
        """Returns A and the step sizes."""
        raise NotImplementedError

    @property
    def depends_on_length(self) -> bool:
        """Whether other taps follow from another length."""
        raise NotImplementedError

    def __call__(
        self, length: int, rate: float | Array = 1.0, over: Int[Array, " b"] | None = None
    ) -> Float[jax.Array, "*b c l h"]:
        """Makes the kernels.

        Args:
            length: How many taps.
            rate: A factor on the step sizes: 2 for an input sampled at half the rate.
            over: Lengths of several kernels, where modes are normalized over the length of each sequence: zeros follow
                up to `length`.

        Returns:
            (c l h), or (b c l h) with `over`.

        Raises:
            ValueError: The length or the rate is not positive, the length is beyond DSS's `l_max`, or there is an
                `over` and modes are not normalized over the length.
        """
        check_rate(self.layer, rate)
        if not self.depends_on_length:
            refuse_over(self.layer, over)
        return self.taps(errors.as_int(self.layer, "length", length, least=1, remedy=STATIC), rate, over)

    def recurrence(self, rate: float | Array = 1.0) -> DiagonalRecurrence:
        """Discretizes the state space.

        Raises:
            ValueError: The rate is not positive, or modes are normalized over the length of each sequence, or grow.
        """
        check_rate(self.layer, rate)
        return self.discretized(rate)

    def carried(
        self, state: Inexact[Array, "b h n"], length: int, rate: float | Array = 1.0
    ) -> Float[jax.Array, "b c l h"]:
        """Computes what a state adds to the outputs of the steps after it, `2 Re C A_bar^(l+1) x`."""
        return carried(self.discretized(rate), *self.scaled(rate), self.transition, state, length)

    def last_state(
        self,
        u: Float[Array, "b l h"],
        steps: Int[Array, " b"],
        state: Inexact[Array, "b h n"] | None,
        rate: float | Array = 1.0,
    ) -> Inexact[jax.Array, "b h n"]:
        """Computes the state after inputs that end at the last place of `u`, `steps` of them, with zeros before."""
        return last_state(self.discretized(rate), *self.scaled(rate), self.transition, u, steps, state)
