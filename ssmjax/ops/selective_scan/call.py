"""One call of the selective scan, as every implementation takes it."""

from typing import NamedTuple

import jax

__all__ = ["STATES", "ScanCall"]

STATES = "selective_scan_states"
"""The name (`jax.ad_checkpoint.checkpoint_name`) of the states that a forward pass stores for the backward pass: under
`jax.checkpoint` with a policy that saves this name, the backward pass does not scan the sequence forwards again."""


class ScanCall(NamedTuple):
    """The arguments of `ssmjax.ops.selective_scan`, checked and as arrays.

    An implementation is a module with a function of a `ScanCall` that returns y and the last state (b e n), and a
    `supports(call)` that returns None if it takes the call, and else the condition that failed. The GPU that it needs
    stands beside it in `api.IMPLEMENTATIONS`.
    """

    x: jax.Array
    dt: jax.Array
    A: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array | None = None
    z: jax.Array | None = None
    dt_bias: jax.Array | None = None
    dt_softplus: bool = False
    h0: jax.Array | None = None
    segment_ids: jax.Array | None = None
    reverse: bool = False
    return_state: bool = True
