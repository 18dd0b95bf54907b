"""S4D: from and to the state dicts of the minimal version of state-spaces/s4, its `s4d.py`, one layer.

B is one there and not stored, and A has positive imaginary parts, which our layer stores as negative ones. The linear
map and its gate after the state space (`output_linear`) are a block's and not a layer's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.layers.lti.s4d import S4D

__all__ = ["convert", "layer_arguments", "rules", "to_reference"]


def rules(theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The lines of a key table for one layer; the arguments are what stands before the names.

    >>> rules("layers.{i}.", "layers.ssm.")[0]
    Rule(source='layers.{i}.D', target='layers.ssm.D', layout='row')
    """
    lines = (
        ("D", "D", "row"),
        ("kernel.C", "kernel.C", "one_channel"),
        ("kernel.log_dt", "kernel.inv_dt", "column"),
        ("kernel.log_A_real", "kernel.A_real", "same"),
        ("kernel.A_imag", "kernel.A_imag", "same"),
    )
    return tuple(Rule(theirs + source, ours + target, layout) for source, target, layout in lines)


def layer_arguments(state: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    """The arguments of our `S4D`, read off the shapes of a state dict.

    Args:
        state: Arrays by the original's names.
        prefix: What stands before the layer's names.

    >>> layer_arguments({"kernel.C": np.zeros((6, 8, 2))})["d_state"]
    16
    """
    d_model, modes, _ = state[f"{prefix}kernel.C"].shape
    return {"d_model": d_model, "d_state": 2 * modes, "init": "diag-lin", "frozen": ("B",)}


def convert(
    state: Mapping[str, np.ndarray], arguments: Mapping[str, Any], where: str = "convert", prefix: str = ""
) -> dict[str, np.ndarray]:
    """Converts the state dict of one layer, without its `output_linear`.

    Args:
        state: Arrays by the original's names.
        arguments: The arguments of our `S4D`, as `layer_arguments` gives them.
        where: What to call the state dict in a message.
        prefix: What stands before the layer's names.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a layer; one message lists all differences.

    >>> arguments = {"d_model": 4, "d_state": 2, "frozen": ("B",)}
    >>> arrays = model_arrays(S4D(**arguments, rngs=nnx.Rngs(0)))
    >>> sorted(convert(to_reference(arrays), arguments)) == sorted(arrays)
    True
    """
    abstract = model_arrays(nnx.eval_shape(lambda: S4D(**arguments, rngs=nnx.Rngs(0))))
    B = abstract.pop("kernel.B")
    ours = KeyTable(rules(prefix)).to_ours(_negated(state, f"{prefix}kernel.A_imag"), abstract, where)
    return ours | {"kernel.B": np.broadcast_to(np.array([1, 0], B.dtype), B.shape).copy()}


def to_reference(arrays: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Converts arrays of ours, or gradients, to the original's names and layout; B is left out."""
    theirs = KeyTable(rules(prefix)).to_source({name: x for name, x in arrays.items() if name != "kernel.B"})
    return _negated(theirs, f"{prefix}kernel.A_imag")


def _negated(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: -x if key == name else x for key, x in arrays.items()}
