"""S4, S4D and DSS: from and to the parameters of The Annotated S4, one layer.

Its layers are one a feature, vectorized, so that the features are the second axis. It stores every mode and counts each
once, which is our `conj_sym=False`; P and B are complex numbers; and S4 is written with the conjugate of C.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule, check_needed, check_real_parts
from ssmjax.layers.lti.s4 import S4
from ssmjax.layers.lti.s4d import S4D

__all__ = ["DEAD", "VARIANTS", "Variant", "convert", "convert_lines", "layer_arguments", "rules", "to_reference"]

Variant = Literal["s4", "s4d", "dss"]

_SHARED = (
    ("D", "D", "same"),
    ("log_step", "kernel.inv_dt", "transposed"),
)
VARIANTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "s4": (
        *_SHARED,
        ("Lambda_re", "kernel.A_real", "transposed"),
        ("Lambda_im", "kernel.A_imag", "transposed"),
        ("P", "kernel.P", "features_second"),
        ("B", "kernel.B", "features_second"),
        ("C", "kernel.C", "features_second"),
    ),
    "s4d": (
        *_SHARED,
        ("A_re", "kernel.A_real", "transposed"),
        ("A_im", "kernel.A_imag", "transposed"),
        ("C", "kernel.C", "features_second"),
    ),
    "dss": (
        *_SHARED,
        ("Lambda_re", "kernel.A_real", "transposed"),
        ("Lambda_im", "kernel.A_imag", "transposed"),
        ("W", "kernel.C", "same"),
    ),
}
"""Names there, ours, and the change of layout, after `_real`: complex arrays as pairs on a last axis, and our signs."""

_NEGATED = ("Lambda_re", "Lambda_im", "A_re", "A_im")
DEAD: dict[str, tuple[str, ...]] = {"s4": (), "s4d": ("B_re", "B_im"), "dss": ()}
"""Parameters that nothing reads there; written as ones and zeros."""


def rules(variant: Variant, theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The lines of a key table for one layer; the last arguments are what stands before the names.

    Raises:
        ValueError: The variant is unknown.

    >>> rules("dss")[0]
    Rule(source='D', target='D', layout='same')
    """
    if variant not in VARIANTS:
        raise ValueError(f"rules: {errors.unknown_name('variant', variant, [*VARIANTS])}")
    return tuple(Rule(theirs + source, ours + target, layout) for source, target, layout in VARIANTS[variant])


def layer_arguments(
    variant: Variant, parameters: Mapping[str, np.ndarray], l_max: int = 1024
) -> tuple[type[S4] | type[S4D], dict[str, Any]]:
    """Our layer for a layer's parameters: the class, and its arguments.

    Args:
        variant: "s4", "s4d" or "dss".
        parameters: Arrays by the original's names.
        l_max: The length that its S4 was built for, which is not among them.

    Raises:
        ValueError: The variant is unknown, or the array that tells the sizes is missing; one message lists all names
            that are unknown or missing.

    >>> layer_arguments("s4d", {"A_re": np.zeros((8, 6))})[1]["d_model"]
    6
    """
    lines = rules(variant)
    name = next(rule.source for rule in lines if rule.target == "kernel.A_real")
    check_needed("layer_arguments", parameters, [name], [rule.source for rule in lines], DEAD[variant])
    modes, width = parameters[name].shape
    ours = {"d_model": width, "d_state": modes, "conj_sym": False, "real_transform": "clip"}
    if variant == "s4":
        return S4, ours | {"l_max": l_max}
    return S4D, ours | {"discretization": "zoh" if variant == "s4d" else "softmax", "frozen": ("B",)}


def convert(
    parameters: Mapping[str, np.ndarray], variant: Variant, arguments: Mapping[str, Any], where: str = "convert"
) -> dict[str, np.ndarray]:
    """Converts the parameters of one layer.

    Args:
        parameters: Arrays by the original's names.
        variant: "s4", "s4d" or "dss".
        arguments: The arguments of our layer, from `layer_arguments`.
        where: What to call the parameters in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a layer (one message lists all differences), or DSS
            has a real part that is not negative.

    >>> layer, arguments = layer_arguments("dss", {"Lambda_re": np.zeros((8, 6))})
    >>> arrays = model_arrays(layer(**arguments, rngs=nnx.Rngs(0)))
    >>> sorted(convert(to_reference(arrays, "dss"), "dss", arguments)) == sorted(arrays)
    True
    """
    layer = S4 if variant == "s4" else S4D
    abstract = model_arrays(nnx.eval_shape(lambda: layer(**arguments, rngs=nnx.Rngs(0))))
    return convert_lines(rules(variant), parameters, variant, abstract, where)


def convert_lines(
    lines: Sequence[Rule],
    parameters: Mapping[str, np.ndarray],
    variant: Variant,
    ours: Mapping[str, Any],
    where: str,
    layers: Sequence[str] = ("",),
) -> dict[str, np.ndarray]:
    """Converts the parameters of a layer, or of a model that holds some.

    Args:
        lines: The lines of the key table, with those of `rules`.
        parameters: Arrays by the original's names.
        variant: "s4", "s4d" or "dss".
        ours: The model's arrays, or their specs, by name.
        where: What to call the parameters in a message.
        layers: What stands before the names of each layer in the original.

    Raises:
        ValueError: The arrays do not match, as in `convert`.
    """
    fixed = {} if variant == "s4" else {name: x for name, x in ours.items() if re.fullmatch(r"(.*\.)?kernel\.B", name)}
    ignored = [before + name for before in layers for name in DEAD[variant]]
    live = {name: x for name, x in ours.items() if name not in fixed}
    arrays = KeyTable(lines, ignored).to_ours(_real(parameters, variant, layers), live, where)
    if variant == "dss":  # the other variants hold real parts where our layers do
        for before in layers:
            name = f"{before}Lambda_re"
            check_real_parts(f"{where}: {name}", -parameters[name], "clip")
    return arrays | {name: np.broadcast_to(np.array([1, 0], x.dtype), x.shape).copy() for name, x in fixed.items()}


def to_reference(arrays: Mapping[str, Any], variant: Variant) -> dict[str, np.ndarray]:
    """Converts arrays of ours to the original's names and layout."""
    live = {name: x for name, x in arrays.items() if variant == "s4" or name != "kernel.B"}
    theirs = _real(KeyTable(rules(variant)).to_source(live), variant)
    if variant == "s4":
        for name in ("P", "B"):
            theirs[name] = theirs[name][..., 0] + np.complex64(1j) * theirs[name][..., 1]
    if variant == "s4d":
        shape = theirs["A_re"].shape
        theirs |= {"B_re": np.ones(shape, np.float32), "B_im": np.zeros(shape, np.float32)}
    return theirs


def _real(
    parameters: Mapping[str, np.ndarray], variant: Variant, layers: Sequence[str] = ("",)
) -> dict[str, np.ndarray]:
    """Complex arrays as pairs, and the signs of the other side: its own inverse where there are no complex arrays."""
    negated = {before + name for before in layers for name in _NEGATED}
    conjugated = {f"{before}C" for before in layers if variant == "s4"}
    real = {}
    for name, x in parameters.items():
        x = np.stack([x.real, x.imag], axis=-1) if np.iscomplexobj(x) else x
        if name in negated:
            x = -x
        elif name in conjugated and x.shape[-1:] == (2,):  # another shape is refused where all arrays are checked
            x = x * np.array([1, -1], x.dtype)
        real[name] = x
    return real
