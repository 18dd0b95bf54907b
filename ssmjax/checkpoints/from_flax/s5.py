"""S5: from and to the layout of lindermanlab/S5's parameters, one layer.

The names are ours, but for the output matrices of a layer of two directions whose C starts as "complex_normal": the
original keeps one C, (h 2p 2), where we have C1 and C2.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.checkpoints.s5_outputs import join_outputs, split_outputs
from ssmjax.layers.lti.s5 import S5

__all__ = ["RULES", "config_from_reference", "convert", "to_reference"]

RULES = tuple(Rule(name, name) for name in ("Lambda_re", "Lambda_im", "B", "C", "C1", "C2", "D", "log_step"))
"""The lines of a key table, without what stands before the names."""

_RENAMED: dict[str, tuple[str, Any]] = {
    "H": ("d_model", None),
    "P": ("d_state", None),
    "J": ("blocks", 1),
    "C_init": ("c_init", "trunc_standard_normal"),
    "discretization": ("discretization", "zoh"),
    "conj_sym": ("conj_sym", True),
    "clip_eigs": ("clip_eigs", False),
    "dt_min": ("dt_min", 1e-3),
    "dt_max": ("dt_max", 0.1),
    "bidirectional": ("bidirectional", False),
}


def config_from_reference(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our layer for those of the original, whose defaults fill what is left out.

    `P` is the full state size, which the original's scripts call `ssm_size_base`, and `J` the number of blocks. A
    `step_rescale` is no property of our layer but of a call, `rate=`.

    Args:
        arguments: Such as `{"H": 128, "P": 64, "bidirectional": True}`.

    Raises:
        ValueError: An argument is unknown.

    >>> config_from_reference({"H": 128, "P": 64, "bidirectional": True})["bidirectional"]
    'inclusive'
    """
    for name in arguments:
        if name not in _RENAMED:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, [*_RENAMED])}")
    ours = {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}
    return ours | {"bidirectional": "inclusive" if ours["bidirectional"] else "none"}


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

    >>> import jax.numpy as jnp
    >>> arguments = config_from_reference({"H": 4, "P": 4, "bidirectional": True, "C_init": "complex_normal"})
    >>> layer = S5(**arguments, rngs=nnx.Rngs(0))
    >>> theirs = to_reference(model_arrays(layer), arguments)
    >>> theirs["C"].shape, sorted(convert(theirs, arguments)) == sorted(model_arrays(layer))
    ((4, 4, 2), True)
    """
    abstract = model_arrays(nnx.eval_shape(lambda: S5(**arguments, rngs=nnx.Rngs(0))))
    return KeyTable(RULES).to_ours(split_outputs(parameters) if "C1" in abstract else dict(parameters), abstract, where)


def to_reference(arrays: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts arrays of ours (parameters, or their gradients) to the original's names and layout.

    Args:
        arrays: By our names.
        arguments: The arguments of our layer. Where `c_init` is left out, the layer's default is meant, which is not
            "complex_normal".
    """
    theirs = KeyTable(RULES).to_source(arrays)
    return join_outputs(theirs) if arguments.get("c_init") == "complex_normal" else theirs
