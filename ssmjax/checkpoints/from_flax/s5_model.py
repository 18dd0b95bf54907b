"""Whole models of lindermanlab/S5: from and to its variables, flattened with slashes.

The running statistics of a batch norm are in a collection of their own there, `batch_stats/`, and among our arrays.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_flax import s5
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.checkpoints.s5_outputs import join_outputs, split_outputs
from ssmjax.models.registry import build
from ssmjax.models.sequence_classifier import SequenceConfig

__all__ = ["TABLE", "config_from_reference", "convert", "to_reference"]

_LAYER = "encoder/layers_{i}/"

TABLE = KeyTable(
    (
        *(Rule(f"encoder/encoder/{name}", f"encoder.{name}") for name in ("kernel", "bias")),
        *(Rule(f"{_LAYER}seq/{rule.source}", f"layers.layer.{rule.target}", rule.layout) for rule in s5.RULES),
        *(Rule(f"{_LAYER}norm/{name}", f"layers.norm.{name}") for name in ("scale", "bias")),
        *(Rule(f"batch_stats/{_LAYER}norm/{name}", f"layers.norm.{name}") for name in ("mean", "var")),
        *(
            Rule(f"{_LAYER}{out}/{name}", f"layers.gate.{out}.{name}")
            for out in ("out1", "out2")
            for name in ("kernel", "bias")
        ),
    )
)
"""All but the head, which has other names in a model that compares two documents."""

_HEADS = {1: (("decoder", "head"),), 2: (("decoder/layer1", "compare"), ("decoder/layer2", "head"))}


def _table(config: SequenceConfig) -> KeyTable:
    heads = _HEADS[config.documents]
    lines = (Rule(f"{theirs}/{name}", f"{ours}.{name}") for theirs, ours in heads for name in ("kernel", "bias"))
    return KeyTable((*TABLE.rules, *lines))


# The arguments of the original's model: ours with the same meaning, and the original's default (None: there is none).
_RENAMED: dict[str, tuple[str, Any]] = {
    "d_output": ("num_classes", None),
    "n_layers": ("depth", None),
    "dropout": ("dropout", 0.2),
    "prenorm": ("prenorm", False),
    "bn_momentum": ("bn_momentum", 0.9),
}
_TRANSLATED: dict[str, Any] = {"d_model": None, "activation": "gelu", "batchnorm": False, "mode": "pool"}
# A padded batch is one with lengths here, and training is an argument of a call.
_WITHOUT_EFFECT = ("padded", "training", "step_rescale")


def config_from_reference(
    arguments: Mapping[str, Any], layer: Mapping[str, Any], *, in_features: int = 1, documents: int = 1
) -> SequenceConfig:
    """Our configuration for the arguments of the original's models.

    Args:
        arguments: The arguments of `ClassificationModel` or `RetrievalModel`, such as
            `{"d_model": 128, "activation": "half_glu1"}`.
        layer: The arguments of its state space layer, as `s5.config_from_reference` takes them, without the width.
        in_features: The width of the input; tokens are one-hot vectors there.
        documents: 2 for a `RetrievalModel`.

    Raises:
        ValueError: An argument is unknown or missing, or its value does not fit.

    >>> theirs = {"d_output": 10, "d_model": 16, "n_layers": 2, "activation": "half_glu2"}
    >>> config_from_reference(theirs, {"P": 8, "J": 2, "bidirectional": True}).gate
    'half_glu2'
    """
    known = [*_RENAMED, *_TRANSLATED, *_WITHOUT_EFFECT]
    for name in arguments:
        if name not in known:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, known)}")
    theirs = _TRANSLATED | dict(arguments)
    options = s5.config_from_reference({"H": theirs["d_model"], **layer})
    batch = theirs["batchnorm"]
    return SequenceConfig(
        layer="s5",
        in_features=in_features,
        documents=documents,
        **{name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()},
        **{name: options.pop(name) for name in ("d_model", "d_state", "bidirectional")},
        layer_options=options,
        gate="none" if theirs["activation"] == "gelu" else theirs["activation"],
        gelu="tanh",
        norm="batch" if batch else "layer",
        norm_eps=1e-5 if batch else 1e-6,
        final_norm=False,
        pool="mean" if theirs["mode"] == "pool" else theirs["mode"],
        padding="pooled",
    )


def convert(
    variables: Mapping[str, np.ndarray], config: SequenceConfig, where: str = "convert"
) -> dict[str, np.ndarray]:
    """Converts the variables of a whole model.

    Args:
        variables: Arrays by the original's names; parameters without the name of their collection.
        config: The configuration of our model.
        where: What to call them in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model; one message lists all differences.

    >>> from ssmjax.models.registry import model_config
    >>> config = model_config("s5_classifier_nano")
    >>> arrays = model_arrays(build("sequence_classifier", config))
    >>> sorted(convert(to_reference(arrays, config), config)) == sorted(arrays)
    True
    """
    abstract = model_arrays(nnx.eval_shape(lambda: build("sequence_classifier", config)))
    variables = split_outputs(variables) if "layers.layer.C1" in abstract else dict(variables)
    return _table(config).to_ours(variables, abstract, where)


def to_reference(arrays: Mapping[str, Any], config: SequenceConfig) -> dict[str, np.ndarray]:
    """Converts arrays of ours to the original's names and layout."""
    theirs = _table(config).to_source(arrays)
    joint = dict(config.layer_options).get("c_init") == "complex_normal"
    return join_outputs(theirs) if joint else theirs
