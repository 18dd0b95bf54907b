"""The LRU: from and to the layout of minimal-LRU's parameters, one layer. The names and shapes are ours."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.layers.lti.lru import LRU

__all__ = ["RULES", "config_from_reference", "convert", "to_reference"]

RULES = tuple(Rule(name, name) for name in ("nu_log", "theta_log", "gamma_log", "B_re", "B_im", "C_re", "C_im", "D"))
"""The lines of a key table, without what stands before the names."""

_RENAMED: dict[str, tuple[str, Any]] = {
    "H": ("d_model", None),
    "N": ("d_state", None),
    "r_min": ("r_min", 0.0),
    "r_max": ("r_max", 1.0),
    "max_phase": ("max_phase", 6.28),
}


def config_from_reference(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our layer for those of the original, whose defaults fill what is left out.

    Args:
        arguments: `H` is the width and `N` the number of modes, such as `{"H": 128, "N": 64, "r_min": 0.9}`.

    Raises:
        ValueError: An argument is unknown.

    >>> config_from_reference({"H": 128, "N": 64})["max_phase"]
    6.28
    """
    for name in arguments:
        if name not in _RENAMED:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, [*_RENAMED])}")
    return {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}


def convert(
    parameters: Mapping[str, np.ndarray], arguments: Mapping[str, Any], where: str = "convert"
) -> dict[str, np.ndarray]:
    """Converts the parameters of one layer.

    Args:
        parameters: Arrays by the original's names.
        arguments: The arguments of our layer, as `config_from_reference` gives them.
        where: What to call the parameters in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a layer; one message lists all differences.

    >>> arguments = config_from_reference({"H": 4, "N": 2})
    >>> arrays = model_arrays(LRU(**arguments, rngs=nnx.Rngs(0)))
    >>> sorted(convert(to_reference(arrays), arguments)) == sorted(arrays)
    True
    """
    abstract = model_arrays(nnx.eval_shape(lambda: LRU(**arguments, rngs=nnx.Rngs(0))))
    return KeyTable(RULES).to_ours(parameters, abstract, where)


def to_reference(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts arrays of ours (parameters, or their gradients) to the original's names and layout."""
    return KeyTable(RULES).to_source(arrays)
