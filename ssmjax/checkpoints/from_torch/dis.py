"""DiS: from and to the key layout of the original implementation's checkpoints.

They carry its non-commercial licence; this code was written from the equations, and the names are facts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch.loading import load_model
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.models import registry
from ssmjax.models.dis import DiS, DiSConfig

__all__ = ["TABLE", "config_from_reference", "convert", "load", "to_reference"]


def _block(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The parts of a block of one arm of the U."""
    branches = []
    for suffix in ("", "_b"):
        branches += [
            Rule(f"{theirs}.mixer.conv1d{suffix}.weight", f"{ours}.mixer.conv1d{suffix}.kernel", "conv1d"),
            Rule(f"{theirs}.mixer.conv1d{suffix}.bias", f"{ours}.mixer.conv1d{suffix}.bias"),
            Rule(f"{theirs}.mixer.x_proj{suffix}.weight", f"{ours}.mixer.x_proj{suffix}.kernel", "linear"),
            Rule(f"{theirs}.mixer.dt_proj{suffix}.weight", f"{ours}.mixer.dt_proj{suffix}.kernel", "linear"),
            Rule(f"{theirs}.mixer.dt_proj{suffix}.bias", f"{ours}.mixer.dt_proj{suffix}.bias"),
            Rule(f"{theirs}.mixer.D{suffix}", f"{ours}.mixer.D{suffix}"),
        ]
    return (
        *branches,
        Rule(f"{theirs}.mixer.A_log", f"{ours}.mixer.A_log"),
        Rule(f"{theirs}.mixer.A_b_log", f"{ours}.mixer.A_b_log"),
        Rule(f"{theirs}.mixer.in_proj.weight", f"{ours}.mixer.in_proj.kernel", "linear"),
        Rule(f"{theirs}.mixer.out_proj.weight", f"{ours}.mixer.out_proj.kernel", "linear"),
        Rule(f"{theirs}.norm.weight", f"{ours}.norm.scale"),
        Rule(f"{theirs}.skip_linear.weight", f"{ours}.skip_linear.kernel", "linear"),
        Rule(f"{theirs}.skip_linear.bias", f"{ours}.skip_linear.bias"),
    )


def _linear(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return Rule(f"{theirs}.weight", f"{ours}.kernel", "linear"), Rule(f"{theirs}.bias", f"{ours}.bias")


TABLE = KeyTable(
    (
        Rule("patch_embed.proj.weight", "patch_embed.proj.kernel", "patch_conv"),
        Rule("patch_embed.proj.bias", "patch_embed.proj.bias"),
        Rule("pos_embed", "pos_embed"),
        Rule("label_emb.embedding_table.weight", "label_embed"),
        *_linear("time_embed.0", "time_embed.expand"),
        *_linear("time_embed.2", "time_embed.contract"),
        *_block("in_blocks.{i}", "in_blocks"),
        *_block("mid_block", "mid_block"),
        *_block("out_blocks.{i}", "out_blocks"),
        Rule("norm_f.weight", "norm_f.scale"),
        *_linear("final_layer.linear", "final_layer.linear"),
        *_linear("final_layer.adaLN_modulation.1", "final_layer.modulation"),
    )
)

# The original constructor's arguments: ours with the same meaning.
_RENAMED = {
    "img_size": "img_size",
    "patch_size": "patch_size",
    "channels": "in_channels",
    "embed_dim": "d_model",
    "depth": "depth",
    "drop_path_rate": "drop_path_rate",
    "learn_sigma": "learn_sigma",
    "skip": "skip",
    "num_classes": "num_classes",
}


def config_from_reference(arguments: Mapping[str, Any]) -> DiSConfig:
    """Our configuration for the arguments of the original's constructor.

    Args:
        arguments: Such as `{"embed_dim": 768, "num_classes": 1000}`. What is left out is as in `DiSConfig`, whose
            stochastic depth is 0.

    Raises:
        ValueError: An argument is unknown, or its value is.

    >>> config_from_reference({"embed_dim": 768, "num_classes": -1}).num_classes
    0
    """
    for name in arguments:
        if name not in _RENAMED:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, list(_RENAMED))}")
    ours = {_RENAMED[name]: value for name, value in arguments.items()}
    if ours.get("num_classes") == -1:
        ours["num_classes"] = 0
    return DiSConfig(**ours)


def convert(state: Mapping[str, np.ndarray], config: DiSConfig, where: str = "convert") -> dict[str, np.ndarray]:
    """Converts a state dict of the original to arrays of ours.

    Args:
        state: Arrays by the original's names.
        config: The configuration of the model they are for.
        where: What to call the state dict in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model; one message lists all differences.
    """
    abstract = nnx.eval_shape(lambda: registry.build("dis", config))
    return TABLE.to_ours(state, model_arrays(abstract), where)


def to_reference(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts arrays of ours, as `checkpoints.arrays.model_arrays` gives them, or gradients, to the original's layout.

    >>> to_reference({"norm_f.scale": np.ones(2)})
    {'norm_f.weight': array([1., 1.])}
    """
    return TABLE.to_source(arrays)


def load(path: str | Path, variant: str | Mapping[str, Any], *, allow_pickle: bool = False, **overrides: Any) -> DiS:
    """Loads a checkpoint of the original implementation (its authors released none; this reads one's own).

    Args:
        path: A `.safetensors` file, or a `.pt` file.
        variant: Which model it is: one of our names (`"dis_huge_latent256"`), or a mapping with the arguments of the
            original's constructor.
        allow_pickle: Whether a `.pt` file may be read; see `read_torch_file`.
        **overrides: Fields of `DiSConfig` in which this checkpoint differs.

    Returns:
        The model.

    Raises:
        ValueError: The file cannot be read, or does not fit the configuration; one message lists all differences.
        ImportError: A `.pt` file, and PyTorch is not installed.
    """
    options = dict(allow_pickle=allow_pickle, overrides=overrides)
    return load_model("dis", path, variant, convert, config_from_reference, **options)
