"""Parameters that say themselves what they are, so that an optimizer needs no table of names."""

from typing import Any, Literal, get_args

from flax import nnx

from ssmjax import errors
from ssmjax.shapes import Array

__all__ = ["DECAYED", "ParameterKind", "parameter"]

ParameterKind = Literal[
    "weight", "embedding", "bias", "norm", "position", "token", "scale", "A", "B", "C", "D", "dt", "P"
]
"""What a parameter is.

Of any network: a matrix or filter ("weight"), a table of token embeddings, a bias, a norm's scale or shift, a position
embedding, a learned token (class token), a layer scale. Of a state space: the state matrix `A`, a stored input vector
`B`, output vector `C` or low-rank part `P`, the skip `D`, and the step size `dt`.
"""

DECAYED = frozenset({"weight", "embedding", "C"})
"""The kinds that weight decay applies to by default."""


def parameter(value: Array, kind: ParameterKind, *, decay: bool | None = None, **metadata: Any) -> nnx.Param:
    """Makes a trainable parameter that carries its kind, and whether weight decay applies to it.

    Args:
        value: The initial value.
        kind: What it is, a `ParameterKind`.
        decay: Whether weight decay applies; None follows `DECAYED`.
        **metadata: Further metadata of the `nnx.Param`.

    Raises:
        ValueError: The kind is unknown.

    >>> import jax.numpy as jnp
    >>> A_log = parameter(jnp.zeros(3), "A")
    >>> A_log.kind, A_log.decay
    ('A', False)
    """
    if kind not in get_args(ParameterKind):
        raise errors.unknown_name("kind of parameter", kind, get_args(ParameterKind))
    return nnx.Param(value, kind=kind, decay=kind in DECAYED if decay is None else decay, **metadata)
