"""Whole models of The Annotated S4: from and to its parameters, flattened with slashes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_flax import annotated_s4
from ssmjax.checkpoints.mapping import KeyTable, Rule, check_needed
from ssmjax.models.registry import build
from ssmjax.models.sequence_classifier import SequenceConfig

__all__ = ["TABLE", "convert", "layer_config", "to_reference"]

TABLE = KeyTable(
    (
        *(Rule(f"encoder/{name}", f"encoder.{name}") for name in ("kernel", "bias")),
        *(Rule(f"layers_{{i}}/norm/{name}", f"layers.norm.{name}") for name in ("scale", "bias")),
        *(
            Rule(f"layers_{{i}}/{theirs}/{name}", f"layers.gate.{ours}.{name}")
            for theirs, ours in (("out", "out1"), ("out2", "out2"))
            for name in ("kernel", "bias")
        ),
        *(Rule(f"decoder/{name}", f"head.{name}") for name in ("kernel", "bias")),
    )
)
"""All but the state spaces, whose lines are `annotated_s4.rules`."""

_STACK = "layers.layer."


def _lines(variant: annotated_s4.Variant) -> tuple[Rule, ...]:
    return (*TABLE.rules, *annotated_s4.rules(variant, _before("{i}"), _STACK))


def _before(i: int | str) -> str:
    """What stands before the names of a state space."""
    return f"layers_{i}/seq/"


def layer_config(variant: annotated_s4.Variant, parameters: Mapping[str, np.ndarray], l_max: int) -> dict[str, Any]:
    """The fields of `SequenceConfig` that the parameters tell.

    Args:
        variant: "s4", "s4d" or "dss".
        parameters: Arrays by the original's names.
        l_max: The length that its S4 was built for.

    Returns:
        The fields; whether it is prenorm, and its pooling, are left to the caller.

    Raises:
        ValueError: The variant is unknown, or an array that tells a size is missing; one message lists all names that
            are unknown or missing.
    """
    depth = len({name.split("/")[0] for name in parameters if name.startswith("layers_")})
    lines = _lines(variant)
    sizes = next(rule.source for rule in lines if rule.target == f"{_STACK}kernel.A_real")
    needed = ("decoder/bias", "encoder/kernel", sizes.format(i=0))
    layers = range(max(depth, 1))
    dead = [_before(i) + name for i in layers for name in annotated_s4.DEAD[variant]]
    check_needed("layer_config", parameters, needed, [rule.source.format(i=i) for rule in lines for i in layers], dead)
    _, arguments = annotated_s4.layer_arguments(variant, _of_layer(parameters, 0), l_max)
    layer = "s4" if variant == "s4" else "s4d"
    own = ("d_model", "d_state", "l_max")
    return {
        "layer": layer,
        "num_classes": len(parameters["decoder/bias"]),
        "in_features": len(parameters["encoder/kernel"]),
        "depth": depth,
        **{name: arguments[name] for name in own if name in arguments},
        "layer_options": {name: value for name, value in arguments.items() if name not in own},
        "gate": "full_glu",
        "gelu": "tanh",
        "norm_eps": 1e-6,
        "final_norm": False,
    }


def convert(
    parameters: Mapping[str, np.ndarray],
    variant: annotated_s4.Variant,
    config: SequenceConfig,
    where: str = "convert",
) -> dict[str, np.ndarray]:
    """Converts the parameters of a whole model.

    Args:
        parameters: Arrays by the original's names.
        variant: "s4", "s4d" or "dss".
        config: The configuration of our model; see `layer_config`.
        where: What to call them in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model (one message lists all differences), or DSS
            has a real part that is not negative.
    """
    abstract = model_arrays(nnx.eval_shape(lambda: build("sequence_classifier", config)))
    layers = [_before(i) for i in range(config.depth)]
    return annotated_s4.convert_lines(_lines(variant), parameters, variant, abstract, where, layers)


def to_reference(arrays: Mapping[str, Any], variant: annotated_s4.Variant) -> dict[str, np.ndarray]:
    """Converts arrays of ours to the original's names and layout."""
    layers = {name.removeprefix(_STACK): x for name, x in arrays.items() if name.startswith(_STACK)}
    theirs = TABLE.to_source({name: x for name, x in arrays.items() if not name.startswith(_STACK)})
    for i in range(len(next(iter(layers.values())))):
        one = annotated_s4.to_reference({name: x[i] for name, x in layers.items()}, variant)
        theirs |= {f"{_before(i)}{name}": x for name, x in one.items()}
    return theirs


def _of_layer(parameters: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    prefix = _before(i)
    return {name.removeprefix(prefix): x for name, x in parameters.items() if name.startswith(prefix)}
