"""Whole models of The Annotated S4: from and to its parameters, flattened with slashes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import check_arrays, model_arrays, specs
from ssmjax.checkpoints.from_flax import annotated_s4
from ssmjax.checkpoints.from_torch.mapping import KeyTable, Rule
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
"""All but the state spaces, whose arrays `annotated_s4` converts."""

_STACK = "layers.layer."


def layer_config(variant: annotated_s4.Variant, parameters: Mapping[str, np.ndarray], l_max: int) -> dict[str, Any]:
    """The fields of `SequenceConfig` that the parameters tell.

    Args:
        variant: "s4", "s4d" or "dss".
        parameters: Arrays by the original's names.
        l_max: The length that its S4 was built for.

    Returns:
        The fields; whether it is prenorm, and its pooling, are left to the caller.
    """
    _, arguments = annotated_s4.layer_arguments(variant, _of_layer(parameters, 0), l_max)
    layer = "s4" if variant == "s4" else "s4d"
    own = ("d_model", "d_state", "l_max")
    return {
        "layer": layer,
        "num_classes": len(parameters["decoder/bias"]),
        "in_features": len(parameters["encoder/kernel"]),
        "depth": len({name.split("/")[0] for name in parameters if name.startswith("layers_")}),
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
        config: Of our model; see `layer_config`.
        where: What to call them in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model; one message lists all differences.
    """
    abstract = model_arrays(nnx.eval_shape(lambda: build("sequence_classifier", config)))
    rest = {name: x for name, x in parameters.items() if "/seq/" not in name}
    ours = TABLE.to_ours(rest, {n: x for n, x in abstract.items() if not n.startswith(_STACK)}, where)
    _, arguments = annotated_s4.layer_arguments(variant, _of_layer(parameters, 0), config.l_max or 1024)
    layers = [
        annotated_s4.convert(_of_layer(parameters, i), variant, arguments, f"{where}: layers_{i}")
        for i in range(config.depth)
    ]
    ours |= {f"{_STACK}{name}": np.stack([layer[name] for layer in layers]) for name in layers[0]}
    check_arrays(where, ours, specs(abstract))
    return ours


def to_reference(arrays: Mapping[str, Any], variant: annotated_s4.Variant) -> dict[str, np.ndarray]:
    """Converts arrays of ours to the original's names and layout."""
    layers = {name.removeprefix(_STACK): x for name, x in arrays.items() if name.startswith(_STACK)}
    theirs = TABLE.to_source({name: x for name, x in arrays.items() if not name.startswith(_STACK)})
    for i in range(len(next(iter(layers.values())))):
        one = annotated_s4.to_reference({name: x[i] for name, x in layers.items()}, variant)
        theirs |= {f"layers_{i}/seq/{name}": x for name, x in one.items()}
    return theirs


def _of_layer(parameters: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    prefix = f"layers_{i}/seq/"
    return {name.removeprefix(prefix): x for name, x in parameters.items() if name.startswith(prefix)}
