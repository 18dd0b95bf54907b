"""A discretized state space for every feature, run over a sequence step by step."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.shapes import Array, Float, Inexact, Mask, Tokens

__all__ = ["Recurrence", "scan"]

CHUNK = 128
"""Steps between the states that the backward pass of a scan keeps; the others are computed again."""


@runtime_checkable
class Recurrence(Protocol):
    """A discretized state space for every feature, a tree of arrays."""

    C: Inexact[jax.Array, "c h n"]

    @property
    def modes(self) -> int:
        """The size of a state."""
        ...

    def advance(self, u: Any, real: Any, begins: Any, state: Any) -> tuple[Any, Any]:
        """Outputs (b c l h) of some steps `u` (b l h), and the state after them; only those that are `real` count.

        A step that `begins` a sequence starts from a state of zeros.
        """
        ...

    def _replace(self, **changes: Any) -> "Recurrence":
        """As of a named tuple."""
        ...


def scan(
    recurrence: Recurrence,
    u: Tokens,
    real: Mask | None,
    state: Inexact[Array, "b d n"],
    begins: Mask | None = None,
) -> tuple[Float[jax.Array, "b c l d"], Inexact[jax.Array, "b d n"]]:
    """Runs a recurrence over a sequence, chunk by chunk; of the states, the backward pass keeps one a chunk.

    Args:
        recurrence: See `Recurrence`.
        u: (b l d).
        real: (b l), False where the state stays as it is; None: nowhere.
        state: (b d n), before the first token.
        begins: (b l), True where a packed sequence begins, from a state of zeros; None: nowhere.

    Returns:
        The outputs, (b c l d), and the state after the last token.

    >>> from flax import nnx
    >>> from ssmjax.layers import S4D
    >>> layer = S4D(8, d_state=4, rngs=nnx.Rngs(0))
    >>> y, state = scan(layer.recurrence(), jnp.ones((2, 5, 8)), None, layer.init_state(2))
    >>> y.shape
    (2, 1, 5, 8)
    """
    b, length, d = u.shape
    real = jnp.ones((b, length), bool) if real is None else real
    begins = jnp.zeros((b, length), bool) if begins is None else begins
    real, begins, state = _compat.split_as((real, begins, state), u)
    recurrence, u, real, begins, state = _compat.vary_alike((recurrence, u, real, begins, state))
    size = min(CHUNK, length)
    chunks = -(-length // size)
    pads = ((0, 0), (0, chunks * size - length))
    u = jnp.pad(u, (*pads, (0, 0))).reshape(b, chunks, size, d).swapaxes(0, 1)
    real, begins = (jnp.pad(v, pads).reshape(b, chunks, size).swapaxes(0, 1) for v in (real, begins))

    @jax.checkpoint
    def advance(recurrence, state, inputs):
        y, state = recurrence.advance(*inputs, state)
        return state, y

    state, y = jax.lax.scan(lambda state, inputs: advance(recurrence, state, inputs), state, (u, real, begins))
    y = jnp.moveaxis(y, 0, 2)  # (b c chunks size d)
    return y.reshape(*y.shape[:2], -1, d)[:, :, :length], state
