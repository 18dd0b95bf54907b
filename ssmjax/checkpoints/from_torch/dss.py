"""DSS: from and to the state dicts of its authors' code, one layer; names and shapes are ours.

The linear map after the state space (`output_linear`) is a block's and not a layer's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.layers.lti.dss import DSS

__all__ = ["VERSIONS", "convert", "layer_arguments", "rules", "to_reference"]

PARAMETERS = ("log_dt", "W", "Lambda", "Lambda_log_neg_re", "Lambda_im", "Lambda_log_im")

VERSIONS: dict[str, dict[str, Any]] = {
    "softmax": {"parametrization": "clip", "max_real": None, "discretization": "softmax"},
    "exp": {"parametrization": "exp", "discretization": "zoh"},
    "exp-re-im": {"parametrization": "exp-re-im", "discretization": "zoh"},
    "clip": {"parametrization": "clip", "max_real": 1e-4, "discretization": "zoh"},
    "exp-no-scale": {"parametrization": "exp", "discretization": "dirac"},
    "exp-re-im-no-scale": {"parametrization": "exp-re-im", "discretization": "dirac"},
    "clip-no-scale": {"parametrization": "clip", "max_real": 1e-4, "discretization": "dirac"},
}
"""The original's versions in terms of our arguments. It lets real parts be positive, up to 1e-4 with "clip"."""

_RENAMED: dict[str, tuple[str, Any]] = {
    "d_model": ("d_model", None),
    "d_state": ("d_state", 64),
    "channels": ("channels", 1),
    "dt_min": ("dt_min", 1e-3),
    "dt_max": ("dt_max", 0.1),
    "sep_dt_re_im": ("separate_dt", True),
}

# Those that need more than another name or say nothing about the arrays, with the original's defaults.
_OTHERS: dict[str, Any] = {"version": "softmax", "bidirectional": False, "Lambda_init": "hippo_skew_pos_imag"}


def rules(theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The lines of a key table for one layer; the arguments are what stands before the names.

    >>> rules("layers.{i}.", "layers.ssm.")[0]
    Rule(source='layers.{i}.D', target='layers.ssm.D', layout='same')
    """
    names = ("D", *(f"kernel.{name}" for name in PARAMETERS))
    return tuple(Rule(theirs + name, ours + name) for name in names)


def layer_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our `DSS` for those of the original; those left out have its defaults.

    Args:
        arguments: Such as `{"d_model": 64, "version": "exp"}`.

    Raises:
        ValueError: An argument is unknown, or the version is.

    >>> layer_arguments({"d_model": 64, "version": "exp"})["discretization"]
    'zoh'
    """
    known = [*_RENAMED, *_OTHERS]
    for name in arguments:
        if name not in known:
            raise ValueError(f"layer_arguments: {errors.unknown_name('argument', name, known)}")
    theirs = _OTHERS | dict(arguments)
    if theirs["version"] not in VERSIONS:
        raise ValueError(f"layer_arguments: {errors.unknown_name('version', theirs['version'], [*VERSIONS])}")
    ours = {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}
    return ours | VERSIONS[theirs["version"]] | {"bidirectional": "exclusive" if theirs["bidirectional"] else "none"}


def convert(
    state: Mapping[str, np.ndarray], arguments: Mapping[str, Any], where: str = "convert", prefix: str = ""
) -> dict[str, np.ndarray]:
    """Converts the state dict of one layer, without its `output_linear`.

    Args:
        state: Arrays by the original's names.
        arguments: The arguments of our `DSS`, as `layer_arguments` gives them.
        where: What to call the state dict in a message.
        prefix: What stands before the layer's names.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a layer; one message lists all differences.

    >>> arguments = layer_arguments({"d_model": 4, "d_state": 2})
    >>> arrays = model_arrays(DSS(**arguments, rngs=nnx.Rngs(0)))
    >>> sorted(convert(to_reference(arrays), arguments)) == sorted(arrays)
    True
    """
    abstract = model_arrays(nnx.eval_shape(lambda: DSS(**arguments, rngs=nnx.Rngs(0))))
    return KeyTable(rules(prefix)).to_ours(state, abstract, where)


def to_reference(arrays: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Converts arrays of ours, or gradients, to the original's names."""
    return KeyTable(rules(prefix)).to_source(arrays)
