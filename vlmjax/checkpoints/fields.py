"""Fields of a `config.json`: read with the defaults of the program that wrote it, and never guessed."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssmjax import errors
from ssmjax.checkpoints.mapping import Rule

__all__ = ["ACTIVATIONS", "block_rules", "field", "name_of_activation", "only"]

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
"""The names of activations there, and ours."""


def field(description: Mapping[str, Any], names: Sequence[str], default: Any) -> Any:
    """The value under the first of several names that is there and is not null, else the default."""
    for name in names:
        if description.get(name) is not None:
            return description[name]
    return default


def only(where: str, description: Mapping[str, Any], name: str, allowed: Sequence[Any], default: Any) -> Any:
    """A field's value, after a check that it is one of those that the model has.

    Raises:
        ValueError: It is another one.
    """
    value = description.get(name, default)
    if value not in allowed:
        raise errors.bad_argument(where, name, value, " or ".join(map(repr, allowed)), "This model has no other form.")
    return value


def name_of_activation(ours: str) -> str:
    """Their name of an activation of ours."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def block_rules(theirs: str, ours: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of a stack of transformer blocks.

    Args:
        theirs: How the names of a block begin, with `{i}` for its number.
        ours: How the names of the stack begin.
        names: Their name of each part of a block by ours; parts that a model lacks do no harm.
    """
    rules = []
    for part, name in names.items():
        norm = part.startswith("norm")
        kernel, layout = ("scale", "same") if norm else ("kernel", "linear")
        rules.append(Rule(f"{theirs}.{name}.weight", f"{ours}.{part}.{kernel}", layout))
        rules.append(Rule(f"{theirs}.{name}.bias", f"{ours}.{part}.bias"))
    return tuple(rules)
