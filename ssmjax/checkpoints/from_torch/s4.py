"""S4 and S4D: from and to the state dicts of state-spaces/s4, one layer (its `FFTConv`), of version 4 and before.

Versions 2 and 3 name the arrays otherwise; `upgrade` renames those of a layer or of a whole model to version 4's.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule, check_real_parts
from ssmjax.layers.lti.s4 import S4
from ssmjax.layers.lti.s4d import S4D

__all__ = ["convert", "layer_arguments", "rules", "to_reference", "upgrade"]

PARAMETERS = ("inv_dt", "C", "B", "A_real", "A_imag", "P")

_MODES = {"diag": S4D, "s4d": S4D, "dplr": S4, "nplr": S4, "s4": S4}

# The original constructor's arguments: ours with the same meaning, and the original's default.
_RENAMED: dict[str, tuple[str, Any]] = {
    "d_model": ("d_model", None),
    "d_state": ("d_state", 64),
    "channels": ("channels", 1),
    "n_ssm": ("copies", None),
    "init": ("init", "legs"),
    "B_init": ("B_init", "constant"),
    "dt_min": ("dt_min", 1e-3),
    "dt_max": ("dt_max", 0.1),
    "dt_transform": ("dt_transform", "exp"),
    "real_transform": ("real_transform", "exp"),
    "imag_transform": ("imag_transform", "none"),
    "bandlimit": ("bandlimit", None),
}

# Those that need more than another name, with the original's defaults.
_TRANSLATED: dict[str, Any] = {
    "mode": "dplr",
    "l_max": None,
    "bidirectional": False,
    "disc": "zoh",
    "dt_tie": True,
    "is_real": False,
    "rank": 1,
}

# Those that say nothing about the arrays: initial values, how it was trained, on what, and what follows the layer.
_WITHOUT_EFFECT = (
    *("activation", "dropout", "tie_dropout", "drop_kernel", "transposed"),
    *("deterministic", "lr", "wd", "verbose", "backend"),
)

# Those that cannot be had: their defaults, which are accepted, and the reason.
_IMPOSSIBLE: dict[str, tuple[Any, str]] = {
    "swap_channels": (False, "it orders the outputs of several channels otherwise than every published model"),
    "kernel": (None, "it brings a kernel class of the caller's own, whose parameters are unknown here"),
}


def rules(theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The lines of a key table for one layer, or for a stack of them.

    Args:
        theirs: What stands before the original's names, such as `"layers.{i}.layer.layer."`.
        ours: What stands before ours, such as `"layers.ssm."`.

    >>> rules("layer.")[1]
    Rule(source='layer.kernel.inv_dt', target='kernel.inv_dt', layout='same')
    """
    names = ("D", *(f"kernel.{name}" for name in PARAMETERS))
    return tuple(Rule(theirs + name, ours + name) for name in names)


def layer_arguments(
    arguments: Mapping[str, Any], state: Mapping[str, np.ndarray], prefix: str = ""
) -> tuple[type[S4] | type[S4D], dict[str, Any]]:
    """Our layer for the arguments of the original's `FFTConv`: the class, and its arguments.

    Args:
        arguments: Such as `{"d_model": 64, "mode": "diag", "init": "diag-lin"}`; those left out have the original's
            defaults.
        state: The state dict, which tells the length for which an S4's C~ is stored.
        prefix: What stands before the layer's names in it.

    Raises:
        ValueError: An argument is unknown, or its value is, or an S4 was never run, so that its C is not yet a C~.
        NotImplementedError: An argument that cannot be taken over, with the reason.

    >>> layer_arguments({"d_model": 8, "mode": "diag", "n_ssm": 2}, {})[1]["copies"]
    2
    """
    where = "layer_arguments"
    known = [*_RENAMED, *_TRANSLATED, *_WITHOUT_EFFECT, *_IMPOSSIBLE]
    for name in arguments:
        if name not in known:
            raise ValueError(f"{where}: {errors.unknown_name('argument', name, known)}")
    for name, (default, reason) in _IMPOSSIBLE.items():
        if arguments.get(name, default) != default:
            raise NotImplementedError(f"{where}: {name}={arguments[name]!r} is not taken over: {reason}.")
    theirs = _TRANSLATED | dict(arguments)
    if theirs["mode"] not in _MODES:
        raise ValueError(f"{where}: {errors.unknown_name('mode', theirs['mode'], [*_MODES])}")
    ours = {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}
    if ours["real_transform"] == "none":
        ours["real_transform"] = "clip"  # the same where it is stable; `convert` refuses the others
    ours["bidirectional"] = "exclusive" if theirs["bidirectional"] else "none"
    if _MODES[theirs["mode"]] is S4D:
        more = {
            "discretization": theirs["disc"],
            "dt_tie": theirs["dt_tie"],
            "real": theirs["is_real"],
            "l_max": theirs["l_max"],
        }
        return S4D, ours | more
    length = int(state.get(f"{prefix}kernel.l_kernel", 0))
    if length == 0:
        remedy = "Run the original once on an input, and save it again."
        raise errors.bad_argument(where, f"{prefix}kernel.l_kernel", length, "the length of a stored C~", remedy)
    return S4, ours | {"rank": theirs["rank"], "l_max": length}


def convert(
    state: Mapping[str, np.ndarray],
    layer: type[S4] | type[S4D],
    arguments: Mapping[str, Any],
    where: str = "convert",
    prefix: str = "",
) -> dict[str, np.ndarray]:
    """Converts the state dict of one layer.

    Args:
        state: Arrays by the original's names, of version 4; see `upgrade`.
        layer: The class, from `layer_arguments`.
        arguments: Its arguments, from there.
        where: What to call the state dict in a message.
        prefix: What stands before the layer's names.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a layer (one message lists all differences), its C~
            is for another length, or a real part is not negative.

    >>> arguments = {"d_model": 4, "d_state": 2}
    >>> arrays = model_arrays(S4D(**arguments, rngs=nnx.Rngs(0)))
    >>> sorted(convert(to_reference(arrays), S4D, arguments)) == sorted(arrays)
    True
    """
    abstract = model_arrays(nnx.eval_shape(lambda: layer(**arguments, rngs=nnx.Rngs(0))))
    buffer = f"{prefix}kernel.l_kernel"
    if layer is S4 and buffer in state and int(state[buffer]) != arguments["l_max"]:
        wanted = f"{arguments['l_max']}, the layer's l_max"
        raise errors.bad_argument(where, buffer, int(state[buffer]), wanted, "Use layer_arguments.")
    check_real_parts(where, state.get(f"{prefix}kernel.A_real"), arguments.get("real_transform", "exp"))
    buffers = {"required" if layer is S4 else "ignored": (buffer,)}
    return KeyTable(rules(prefix), **buffers).to_ours(state, abstract, where)


def to_reference(arrays: Mapping[str, Any], l_kernel: int | None = None, prefix: str = "") -> dict[str, np.ndarray]:
    """Converts arrays of ours, or gradients, to the original's names.

    Args:
        arrays: By our names.
        l_kernel: The length that an S4's C~ is for, `layer.kernel.l_kernel`; None leaves the buffer out.
        prefix: What is to stand before the names.
    """
    theirs = KeyTable(rules(prefix)).to_source(arrays)
    return theirs if l_kernel is None else theirs | {f"{prefix}kernel.l_kernel": np.asarray(l_kernel)}


def upgrade(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the arrays of versions 2 and 3 to version 4's, wherever they stand in a model.

    A layer's `kernel.kernel.log_dt` becomes `layer.kernel.inv_dt`, and so on; the sign of the imaginary part changes.
    Cached tables (`omega`, `z`), whose shapes depend on a length, are left out. Other arrays stay as they are.

    Args:
        state: Arrays by their names.

    >>> old = {"kernel.kernel.w_imag": np.ones((1, 2)), "kernel.kernel.log_dt": np.zeros(4), "D": np.ones((1, 4))}
    >>> {name: x.shape for name, x in upgrade(old).items()}
    {'layer.kernel.A_imag': (1, 2), 'layer.kernel.inv_dt': (4, 1), 'layer.D': (1, 4)}
    """
    layers = {found[1] for name in state if (found := re.fullmatch(r"(.*?)kernel\.kernel\.\w+", name))}
    renamed = {}
    for name, x in state.items():
        before, _, last = name.rpartition("kernel.kernel.")
        if name.endswith("kernel.kernel." + last) and before in layers and "." not in last:
            if last in ("omega", "z"):
                continue
            new = _OLD_NAMES.get(last, last)
            x = x[:, None] if last == "log_dt" else -x if last == "w_imag" else x
            renamed[f"{before}layer.kernel.{new}"] = x
        elif name.endswith("D") and name[:-1] in layers:
            renamed[f"{name[:-1]}layer.D"] = x
        else:
            renamed[name] = x
    return renamed


_OLD_NAMES = {"log_dt": "inv_dt", "inv_w_real": "A_real", "log_w_real": "A_real", "w_imag": "A_imag", "L": "l_kernel"}
