"""S5: from and to the layout of the s5-pytorch package's state dicts, one layer.

It keeps every mode and not one of each conjugate pair, and complex parameters: `Lambda` (p) is our `Lambda_re` and
`Lambda_im`, and `C` (h p), or (h 2p) for two directions, our (h p 2).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule, check_needed
from ssmjax.checkpoints.s5_outputs import join_outputs, split_outputs
from ssmjax.layers.lti.s5 import S5

__all__ = ["TABLE", "convert", "layer_arguments", "to_reference"]

TABLE = KeyTable(
    (
        Rule("seq.Lambda.real", "Lambda_re"),
        Rule("seq.Lambda.imag", "Lambda_im"),
        *(Rule(f"seq.{name}", name) for name in ("B", "C", "C1", "C2", "D")),
        Rule("seq.log_step", "log_step", "column"),
    )
)
"""After `_as_real`: complex arrays are pairs on a last axis, and Lambda's parts are two arrays."""


_NAMES = ("seq.Lambda", "seq.B", "seq.C", "seq.D", "seq.log_step")


def layer_arguments(state: Mapping[str, np.ndarray], discretization: str = "zoh") -> dict[str, Any]:
    """The arguments of our `S5` for a state dict of the original, read off its shapes.

    Args:
        state: Arrays by the original's names.
        discretization: What the original was built with, which its state dict does not hold; its default.

    Raises:
        ValueError: `seq.B` or `seq.C` is missing; one message lists all names that are unknown or missing.

    >>> shapes = {"seq.B": (16, 6, 2), "seq.C": (6, 32)}
    >>> layer_arguments({name: np.zeros(shape) for name, shape in shapes.items()})["bidirectional"]
    'inclusive'
    """
    check_needed("layer_arguments", state, ("seq.B", "seq.C"), _NAMES)
    modes, width, _ = state["seq.B"].shape
    both = state["seq.C"].shape[1] == 2 * modes
    return {
        "d_model": width,
        "d_state": modes,
        "conj_sym": False,
        "clip_eigs": False,
        "discretization": discretization,
        "bidirectional": "inclusive" if both else "none",
    }


def convert(
    state: Mapping[str, np.ndarray], arguments: Mapping[str, Any], where: str = "convert"
) -> dict[str, np.ndarray]:
    """Converts a state dict of one layer.

    Args:
        state: Arrays by the original's names.
        arguments: The arguments of our layer, as `layer_arguments` gives them.
        where: What to call the state dict in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a layer; one message lists all differences.

    >>> arguments = {"d_model": 4, "d_state": 2, "conj_sym": False, "bidirectional": "inclusive"}
    >>> arrays = model_arrays(S5(**arguments, rngs=nnx.Rngs(0)))
    >>> sorted(convert(to_reference(arrays), arguments)) == sorted(arrays)
    True
    """
    abstract = model_arrays(nnx.eval_shape(lambda: S5(**arguments, rngs=nnx.Rngs(0))))
    real = _as_real(state)
    return TABLE.to_ours(split_outputs(real) if "C1" in abstract else real, abstract, where)


def to_reference(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts arrays of ours to the original's names and layout."""
    theirs = join_outputs(TABLE.to_source(arrays))
    real, imag = theirs.pop("seq.Lambda.real"), theirs.pop("seq.Lambda.imag")
    C = theirs.pop("seq.C")
    return theirs | {"seq.Lambda": real + 1j * imag, "seq.C": C[..., 0] + 1j * C[..., 1]}


def _as_real(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    real = {}
    for name, x in state.items():
        if not np.iscomplexobj(x):
            real[name] = x
        elif name == "seq.Lambda":
            real[f"{name}.real"], real[f"{name}.imag"] = x.real, x.imag
        else:
            real[name] = np.stack([x.real, x.imag], axis=-1)
    return real
