"""Event-SSM: from and to the layout of its state space layer, S5's with steps of varying length.

The pooling of events and the dense D of a layer that changes the width are not here.
"""

from collections.abc import Mapping
from typing import Any

from ssmjax import errors
from ssmjax.checkpoints.from_flax.s5 import convert, to_reference

__all__ = ["config_from_reference", "convert", "to_reference"]

_DEFAULTS: dict[str, Any] = {
    "H": None,
    "P": None,
    "block_size": None,
    "C_init": "lecun_normal",
    "discretization": "zoh",
    "dt_min": 1e-3,
    "dt_max": 0.1,
    "conj_sym": True,
    "clip_eigs": False,
}


def config_from_reference(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of our `S5` for those of the original, whose defaults fill what is left out.

    The times between events are the `dts` of a call. The original names the size of a block, not the number of blocks.

    Args:
        arguments: Such as `{"H": 128, "P": 64, "block_size": 16, "discretization": "async"}`.

    Raises:
        ValueError: An argument is unknown, or the state size is no multiple of the block size.

    >>> config_from_reference({"H": 8, "P": 16, "block_size": 8, "discretization": "dirac"})["blocks"]
    2
    """
    for name in arguments:
        if name not in _DEFAULTS:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, [*_DEFAULTS])}")
    theirs = _DEFAULTS | dict(arguments)
    block = theirs["block_size"] or theirs["P"]
    if theirs["P"] % block:
        raise errors.bad_argument("config_from_reference", "P", theirs["P"], f"a multiple of block_size = {block}")
    same = ("discretization", "dt_min", "dt_max", "conj_sym", "clip_eigs")
    sizes = {"d_model": theirs["H"], "d_state": theirs["P"], "blocks": theirs["P"] // block}
    return sizes | {"c_init": theirs["C_init"]} | {name: theirs[name] for name in same}
