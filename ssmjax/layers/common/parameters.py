"""Parameters that say themselves what they are, so that an optimizer needs no table of names."""

from typing import Any, Literal, TypeVar, get_args

from flax import nnx

from ssmjax import errors
from ssmjax.shapes import Array

__all__ = ["DECAYED", "STATE_SPACE", "ParameterKind", "parameter", "with_kinds"]

ParameterKind = Literal[
    "weight",
    "filter",
    "head",
    "embedding",
    "bias",
    "norm",
    "position",
    "token",
    "scale",
    "A",
    "B",
    "C",
    "D",
    "dt",
    "P",
]
"""What a parameter is.

Of any network: a matrix inside of it ("weight"), a convolution's filter, the matrix of the last layer ("head"), a table
of token embeddings, a bias, a norm's scale or shift, a position embedding, a learned token (class token), a layer
scale. Of a state space: the state matrix `A`, a stored input vector `B`, output vector `C` or low-rank part `P`, the
skip `D`, and the step size `dt`.
"""

DECAYED = frozenset({"weight", "filter", "head", "embedding", "B", "C", "P"})
"""The kinds that weight decay applies to by default."""

STATE_SPACE = frozenset({"A", "B", "C", "D", "dt", "P"})
"""The kinds that belong to a state space."""

_KIND_OF_NAME = {"kernel": "weight", "embedding": "embedding", "scale": "norm", "bias": "bias"}

Module = TypeVar("Module", bound=nnx.Module)


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


def with_kinds(layer: Module, **kinds: ParameterKind) -> Module:
    """Gives the parameters of one of Flax's own layers their kinds, in place.

    Args:
        layer: A layer such as `nnx.Linear`. Its `kernel` is a "weight", or the "filter" of a convolution, its `bias` a
            "bias", its `embedding` an "embedding" and its `scale` a "norm".
        **kinds: Other kinds, by the names of the parameters.

    Returns:
        The same layer.

    >>> head = with_kinds(nnx.Linear(8, 10, rngs=nnx.Rngs(0)), kernel="head")
    >>> head.kernel.kind, head.bias.kind
    ('head', 'bias')
    """
    default = _KIND_OF_NAME | ({"kernel": "filter"} if isinstance(layer, nnx.Conv | nnx.ConvTranspose) else {})
    for name, kind in {**default, **kinds}.items():
        variable = getattr(layer, name, None)
        if isinstance(variable, nnx.Param):
            setattr(layer, name, parameter(variable[...], kind))
        elif name in kinds:
            known = [key for key, value in vars(layer).items() if isinstance(value, nnx.Param)]
            raise errors.unknown_name(f"parameter of {type(layer).__name__}", name, known)
    return layer
