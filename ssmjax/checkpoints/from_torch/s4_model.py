"""Whole models of state-spaces/s4: from and to its state dicts, and those of its blocks (`S4Block`).

A model is an encoder, `layers.{i}` of a block (`layer.layer`, the state space, and `layer.output_linear`) and a norm,
and a decoder. A Lightning checkpoint has `model.` before the names of the layers, and numbers after `encoder` and
`decoder` that depend on the task; `canonical` takes both away, and upgrades versions 2 and 3.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import s4
from ssmjax.checkpoints.mapping import KeyTable, Rule, check_real_parts
from ssmjax.checkpoints.torch_file import read_torch_file
from ssmjax.errors import bad_argument
from ssmjax.models.config import override
from ssmjax.models.registry import build, model_config
from ssmjax.models.sequence_classifier import SequenceClassifier, SequenceConfig

__all__ = ["BLOCK", "block_rules", "canonical", "convert", "load", "to_reference"]

logger = logging.getLogger(__name__)


def block_rules(theirs: str = "", ours: str = "", ssm: str = "layer.", gate: str = "gate.") -> tuple[Rule, ...]:
    """The lines of a key table for a block, or for a stack of them.

    Args:
        theirs: What stands before the original's names, such as `"layers.{i}.layer."`.
        ours: What stands before ours, such as `"layers."`.
        ssm: What stands before the names of the state space in ours.
        gate: What stands before those of the gate.

    >>> block_rules()[-2]
    Rule(source='output_linear.0.weight', target='gate.out.kernel', layout='linear')
    """
    return (
        *s4.rules(f"{theirs}layer.", f"{ours}{ssm}"),
        Rule(f"{theirs}output_linear.0.weight", f"{ours}{gate}out.kernel", "linear"),
        Rule(f"{theirs}output_linear.0.bias", f"{ours}{gate}out.bias"),
    )


BLOCK = KeyTable(block_rules(), ignored=("layer.kernel.l_kernel",))
"""One `S4Block`."""

_STATISTICS = (("running_mean", "mean"), ("running_var", "var"))
_NORM = (("weight", "scale"), ("bias", "bias"), *_STATISTICS)


def _table(config: SequenceConfig) -> KeyTable:
    linear = "same" if config.vocab_size else "linear"  # an embedding has its tokens first, as ours
    rules = (
        Rule("encoder.weight", "encoder.kernel", linear),
        Rule("encoder.bias", "encoder.bias"),
        *block_rules("layers.{i}.layer.", "layers."),
        *(Rule(f"layers.{{i}}.norm.norm.{theirs}", f"layers.norm.{ours}") for theirs, ours in _NORM),
        *(Rule(f"norm.norm.{theirs}", f"norm.{ours}") for theirs, ours in _NORM),
        Rule("decoder.output_transform.weight", "head.kernel", "linear"),
        Rule("decoder.output_transform.bias", "head.bias"),
    )
    ignored = [f"layers.{i}.norm.norm.num_batches_tracked" for i in range(config.depth)]
    ignored.append("norm.norm.num_batches_tracked")
    lengths = [f"{_ssm(i)}kernel.l_kernel" for i in range(config.depth)]
    if config.layer == "s4":  # whose C~ is for that length
        return KeyTable(rules, ignored, required=lengths)
    return KeyTable(rules, [*ignored, *lengths])


def _ssm(i: int) -> str:
    return f"layers.{i}.layer.layer."


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of version 4 without `model.`, and `encoder` and `decoder` without numbers.

    Args:
        state: A state dict of any version, as the `"state_dict"` of a checkpoint holds it.

    >>> sorted(canonical({"model.layers.0.norm.norm.bias": np.ones(2), "decoder.0.output_transform.bias": np.ones(2)}))
    ['decoder.output_transform.bias', 'layers.0.norm.norm.bias']
    """
    names = s4.upgrade({name.removeprefix("model."): x for name, x in state.items()})
    return {re.sub(r"^(encoder|decoder)((\.\d+)+)\.", r"\1.", name): x for name, x in names.items()}


def convert(state: Mapping[str, np.ndarray], config: SequenceConfig, where: str = "convert") -> dict[str, np.ndarray]:
    """Converts the state dict of a whole model.

    Args:
        state: Arrays by the original's names, of any version.
        config: The configuration of our model.
        where: What to call the state dict in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model (one message lists all differences), or a C~
            is for another length than `config.l_max`, or a real part is not negative.

    >>> config = override(model_config("s4_classifier_nano"), {"l_max": 16}, "example")
    >>> arrays = model_arrays(build("sequence_classifier", config))
    >>> sorted(convert(to_reference(arrays, config), config)) == sorted(arrays)
    True
    """
    state = canonical(state)
    real_transform = config.layer_arguments.get("real_transform", "exp")
    l_max = config.parameters_depend_on.get("l_max")
    for i in range(config.depth):
        name = f"{_ssm(i)}kernel.l_kernel"
        if l_max is not None and name in state and int(state[name]) != l_max:
            wanted = f"{l_max}, the configuration's l_max"
            raise bad_argument(where, name, int(state[name]), wanted, f"Use l_max={int(state[name])}.")
        check_real_parts(f"{where}: layers.{i}", state.get(f"{_ssm(i)}kernel.A_real"), real_transform)
    abstract = model_arrays(nnx.eval_shape(lambda: build("sequence_classifier", config)))
    return _table(config).to_ours(state, abstract, where)


def to_reference(arrays: Mapping[str, Any], config: SequenceConfig) -> dict[str, np.ndarray]:
    """Converts arrays of ours to the original's names, with the buffers that an S4 needs."""
    theirs = _table(config).to_source(arrays)
    if (l_max := config.parameters_depend_on.get("l_max")) is not None:
        for i in range(config.depth):
            theirs[f"{_ssm(i)}kernel.l_kernel"] = np.asarray(l_max)
    return theirs


def load(
    path: str | Path, model: str | SequenceConfig, *, allow_pickle: bool = False, **overrides: Any
) -> SequenceClassifier:
    """Loads a checkpoint of the original's classification models.

    Args:
        path: A `.safetensors` file, or the `.ckpt` or `.pth` file.
        model: One of our names, such as `"s4_classifier_listops"`, or a configuration.
        allow_pickle: Whether a file of the second kind may be read; see `read_torch_file`.
        **overrides: Fields of the configuration in which this checkpoint differs, such as `l_max`, the length that the
            original last ran with.

    Returns:
        The model.

    Raises:
        ValueError: The file cannot be read, or does not fit the configuration; one message lists all differences.
        ImportError: A pickle, and PyTorch is not installed.
    """
    where = "from_torch.s4_model.load"
    named = model_config(model) if isinstance(model, str) else model
    if type(named) is not SequenceConfig or named.layer not in ("s4", "s4d"):
        raise bad_argument(where, "model", model, "a sequence classifier with an S4 or S4D layer")
    config = override(named, overrides, where)
    loaded = nnx.eval_shape(lambda: build("sequence_classifier", config))
    set_model_arrays(loaded, convert(read_torch_file(path, allow_pickle=allow_pickle), config, str(path)))
    logger.info("Loaded a model of the original layout from %s.", path)
    return loaded
