"""S4ND: from and to the layout of the original module's state dicts, one layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule, check_needed, check_real_parts
from ssmjax.layers.lti.s4nd import S4ND

__all__ = ["TABLE", "convert", "layer_arguments", "to_reference"]

TABLE = KeyTable(
    (
        Rule("D", "D"),
        *(
            Rule(f"kernel.{{i}}.{name}", f"kernels.{{i}}.{name}")
            for name in ("inv_dt", "C", "B", "A_real", "A_imag", "P")
        ),
        Rule("output_linear.0.weight", "output_linear.kernel", "linear"),
        Rule("output_linear.0.bias", "output_linear.bias"),
    )
)

_PLAIN = {f"output_linear.{name}": f"output_linear.0.{name}" for name in ("weight", "bias")}
"""The linear map's names where no activation follows it, `final_act=None`, and where one does."""

# The original constructor's arguments: ours with the same meaning, and the original's default.
_RENAMED: dict[str, tuple[str, Any]] = {
    "d_model": ("d_model", None),
    "d_state": ("d_state", 64),
    "dim": ("axes", 2),
    "trank": ("trank", 1),
    "channels": ("channels", 1),
    "bandlimit": ("bandlimit", None),
    "init": ("init", "legs"),
    "n_ssm": ("copies", None),
    "dt_min": ("dt_min", 0.001),
    "dt_max": ("dt_max", 0.1),
    "dt_transform": ("dt_transform", "exp"),
    "real_transform": ("real_transform", "exp"),
    "imag_transform": ("imag_transform", "none"),
}

_KERNELS = {"diag": "s4d", "s4d": "s4d", "dplr": "s4", "nplr": "s4", "s4": "s4"}

# Those that need more than another name, with the original's defaults. The last four belong to what follows the layer.
_TRANSLATED: dict[str, Any] = {
    "mode": "dplr",
    "l_max": None,
    "bidirectional": True,
    "disc": "zoh",
    "rank": 1,
    "contract_version": 0,
    "linear": True,
    "activation": "gelu",
    "final_act": None,
    "dropout": 0.0,
}


def layer_arguments(arguments: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arguments of our `S4ND` for those of the original's constructor; what is left out has the original's default.

    Args:
        arguments: Such as `{"d_model": 64, "mode": "diag", "init": "diag-lin"}`.
        state: The layer's state dict, which tells the length for which a kernel of S4 is stored.

    Raises:
        ValueError: An argument is unknown, or its value is, or a kernel of S4 was never run, so that its state dict
            holds an output vector that belongs to no length yet, or has no length (one message lists all names that
            are unknown or missing).
        NotImplementedError: The original ignores `trank` with `contract_version=1`.

    >>> layer_arguments({"d_model": 8, "mode": "diag", "bidirectional": False}, {})["bidirectional"]
    'none'
    """
    where = "layer_arguments"
    known = [*_RENAMED, *_TRANSLATED]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{where}: {errors.unknown_name('argument', name, known)}")
    theirs = _TRANSLATED | dict(arguments)
    if theirs["mode"] not in _KERNELS:
        raise ValueError(f"{where}: {errors.unknown_name('mode', theirs['mode'], list(_KERNELS))}")
    ours = {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}
    if theirs["contract_version"] and ours["trank"] > 1:
        raise NotImplementedError(f"{where}: the original ignores trank with contract_version=1; set it to 1.")
    ours["kernel"] = _KERNELS[theirs["mode"]]
    ours["bidirectional"] = "exclusive" if theirs["bidirectional"] else "none"
    ours["l_max"] = theirs["l_max"]
    if ours["kernel"] == "s4d":
        return ours | {"discretization": theirs["disc"]}
    lengths = _lengths(ours["axes"])
    state = {_PLAIN.get(name, name): x for name, x in state.items()}
    check_needed(where, state, lengths, [*_names(state, ours["axes"]), *lengths])
    ours["l_max"] = tuple(int(state[name]) for name in lengths)
    if 0 in ours["l_max"]:
        remedy = "Run the original once on an input, and save it again."
        raise errors.bad_argument(where, "l_kernel", ours["l_max"], "the lengths of the stored kernels", remedy)
    return ours | {"rank": theirs["rank"]}


def convert(
    state: Mapping[str, np.ndarray], arguments: Mapping[str, Any], where: str = "convert"
) -> dict[str, np.ndarray]:
    """Converts a state dict of one layer.

    Args:
        state: Arrays by the original's names.
        arguments: The arguments of our layer, as `layer_arguments` gives them.
        where: What to call the state dict in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them. The linear map that may follow the
        layer (`linear=False`) is `output_linear.kernel` and `output_linear.bias`, those of a `layers.Gate`: of the kind
        "glu" with `final_act="glu"`, which doubles it, else of the kind "linear".

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a layer (one message lists all differences), a
            kernel is stored for another length, or a real part is not negative.

    >>> arguments = {"d_model": 4, "d_state": 2}
    >>> arrays = model_arrays(S4ND(**arguments, rngs=nnx.Rngs(0)))
    >>> sorted(convert(to_reference(arrays), arguments)) == sorted(arrays)
    True
    """
    ours = model_arrays(nnx.eval_shape(lambda: S4ND(**arguments, rngs=nnx.Rngs(0))))
    features, width = arguments["d_model"] * arguments.get("channels", 1), arguments["d_model"]
    state = {_PLAIN.get(name, name): x for name, x in state.items()}
    if any(name.startswith("output_linear.") for name in state):
        out = state["output_linear.0.weight"].shape[0] if "output_linear.0.weight" in state else width
        ours["output_linear.kernel"] = jax.ShapeDtypeStruct((features, out), np.float32)
        ours["output_linear.bias"] = jax.ShapeDtypeStruct((out,), np.float32)
    table = TABLE
    if arguments.get("kernel") == "s4":
        _check_lengths(state, arguments["l_max"], where)
        table = dataclasses.replace(TABLE, required=_lengths(len(arguments["l_max"])))
    for name, x in state.items():
        if name.endswith(".A_real"):
            check_real_parts(where, x, arguments.get("real_transform", "exp"))
    return table.to_ours(state, ours, where)


def to_reference(arrays: Mapping[str, Any], final_act: str | None = "glu") -> dict[str, np.ndarray]:
    """Converts arrays of ours, or gradients, to the original's names and layout; without the buffers `l_kernel`.

    Args:
        arrays: By our names.
        final_act: The original's argument: with None the linear map is `output_linear` itself, else its first part.
    """
    names = {} if final_act is not None else {ours: theirs for theirs, ours in _PLAIN.items()}
    return {names.get(name, name): x for name, x in TABLE.to_source(arrays).items()}


def _check_lengths(state, l_max, where):
    for i, (name, length) in enumerate(zip(_lengths(len(l_max)), l_max, strict=True)):
        if name in state and int(state[name]) != length:
            wanted = f"{length}, the layer's l_max along axis {i}"
            raise errors.bad_argument(where, name, int(state[name]), wanted, "Use layer_arguments.")


def _lengths(axes: int) -> list[str]:
    return [f"kernel.{i}.l_kernel" for i in range(axes)]


def _names(state: Mapping[str, Any], axes: int) -> list[str]:
    """Every name of a parameter; the linear map is optional."""
    linear = any(name.startswith("output_linear.") for name in state)
    sources = [rule.source for rule in TABLE.rules if linear or not rule.source.startswith("output_linear.")]
    return [source.format(i=i) for source in sources for i in range(axes)]
