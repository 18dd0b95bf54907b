"""Dimension letters and the array types built on them, used in every public signature.

    b batch            l sequence         d model width       e expanded inner width    n state size
    h heads            p head width       g B/C groups        c chunks                  q position in a chunk
    k conv taps        r dt rank          m merged tokens     v vocabulary              y x image rows, columns

Channels are last and time is second. Annotations are checked at run time in the tests and cost users nothing.
"""

import jax
import numpy as np
from jaxtyping import Bool, Complex, Float, Inexact, Int, Key, UInt8

__all__ = [
    "Array",
    "Bool",
    "Complex",
    "Expanded",
    "Float",
    "Images",
    "Inexact",
    "Int",
    "Key",
    "Mask",
    "PRNGKey",
    "SegmentIds",
    "State",
    "Tokens",
    "UInt8",
]

Array = jax.Array | np.ndarray

Tokens = Float[Array, "b l d"]
"""A batch of sequences at model width."""

Expanded = Float[Array, "b l e"]
"""A batch of sequences at the expanded inner width."""

State = Inexact[Array, "b e n"]
"""A recurrent state, float32 or complex64."""

SegmentIds = Int[Array, "b l"]
"""Which packed sequence a position belongs to; a change of id resets the state."""

Mask = Bool[Array, "b l"]
"""True where a position is real, False where it is padding."""

Images = Float[Array, "b y x d"]
"""Channels-last images."""

PRNGKey = Key[jax.Array, ""]
"""A typed key, as `jax.random.key` makes it."""
