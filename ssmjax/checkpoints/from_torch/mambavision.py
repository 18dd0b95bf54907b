"""MambaVision: from and to the key layout of the published checkpoints, which are for non-commercial use."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch.image_parts import linear_rules, norm_rules, with_counters, without_counters
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.checkpoints.torch_file import read_torch_file
from ssmjax.models import registry
from ssmjax.models.config import override
from ssmjax.models.mambavision import MambaVision, MambaVisionConfig

__all__ = ["MIXER", "TABLE", "config_from_reference", "convert", "load", "to_reference"]

logger = logging.getLogger(__name__)

_RENAMED: dict[str, tuple[str, Any]] = {
    "dim": ("dim", 80),
    "in_dim": ("in_dim", 32),
    "in_chans": ("in_channels", 3),
    "num_classes": ("num_classes", 1000),
    "depths": ("depths", (1, 3, 8, 4)),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "qkv_bias": ("qkv_bias", True),
    "layer_scale": ("layer_scale", None),
    "layer_scale_conv": ("layer_scale_conv", None),
    "drop_path_rate": ("drop_path_rate", 0.2),
}
"""The original's arguments, our names, and the published T's values."""

_TRANSLATED: dict[str, Any] = {
    "window_size": (8, 8, 14, 7),
    "num_heads": (2, 4, 8, 16),
    "qk_scale": None,
    "resolution": 224,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
}


def mixer_rules(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of the scanning mixer."""
    return (
        Rule(f"{source}A_log", f"{target}A_log"),
        Rule(f"{source}D", f"{target}D"),
        *(rule for n in ("in_proj", "x_proj", "dt_proj", "out_proj") for rule in linear_rules(source + n, target + n)),
        Rule(f"{source}conv1d_x.weight", f"{target}conv1d_x", "conv1d"),
        Rule(f"{source}conv1d_z.weight", f"{target}conv1d_z", "conv1d"),
    )


def _block_rules(kind: str) -> tuple[Rule, ...]:
    """The rules of the blocks of one kind in the last two levels; `kind` is part of the name, see `_by_kind`."""
    theirs, ours = f"levels.{{s}}.{kind}.{{j}}.", f"levels.{{s}}.{kind}."
    return (
        *norm_rules(f"{theirs}norm1", f"{ours}norm1"),
        *norm_rules(f"{theirs}norm2", f"{ours}norm2"),
        *linear_rules(f"{theirs}mlp.fc1", f"{ours}mlp.fc1"),
        *linear_rules(f"{theirs}mlp.fc2", f"{ours}mlp.fc2"),
        Rule(f"{theirs}gamma_1", f"{ours}gamma_1"),
        Rule(f"{theirs}gamma_2", f"{ours}gamma_2"),
    )


MIXER = KeyTable(mixer_rules("", ""))
"""The scanning mixer alone."""

TABLE = KeyTable(
    (
        Rule("patch_embed.conv_down.0.weight", "patch_embed.convs.0.kernel", "patch_conv"),
        *norm_rules("patch_embed.conv_down.1", "patch_embed.norms.0"),
        Rule("patch_embed.conv_down.3.weight", "patch_embed.convs.1.kernel", "patch_conv"),
        *norm_rules("patch_embed.conv_down.4", "patch_embed.norms.1"),
        *linear_rules("levels.{s}.blocks.{j}.conv1", "levels.{s}.blocks.conv1", "patch_conv"),
        *norm_rules("levels.{s}.blocks.{j}.norm1", "levels.{s}.blocks.norm1"),
        *linear_rules("levels.{s}.blocks.{j}.conv2", "levels.{s}.blocks.conv2", "patch_conv"),
        *norm_rules("levels.{s}.blocks.{j}.norm2", "levels.{s}.blocks.norm2"),
        Rule("levels.{s}.blocks.{j}.gamma", "levels.{s}.blocks.gamma"),
        *_block_rules("mamba"),
        *mixer_rules("levels.{s}.mamba.{j}.mixer.", "levels.{s}.mamba.mixer."),
        *_block_rules("attention"),
        *linear_rules("levels.{s}.attention.{j}.mixer.qkv", "levels.{s}.attention.mixer.qkv"),
        *linear_rules("levels.{s}.attention.{j}.mixer.proj", "levels.{s}.attention.mixer.proj"),
        *norm_rules("levels.{s}.attention.{j}.mixer.q_norm", "levels.{s}.attention.mixer.q_norm"),
        *norm_rules("levels.{s}.attention.{j}.mixer.k_norm", "levels.{s}.attention.mixer.k_norm"),
        Rule("levels.{s}.downsample.reduction.0.weight", "levels.{s}.downsample.conv.kernel", "patch_conv"),
        *norm_rules("norm", "norm"),
        *linear_rules("head", "head"),
    )
)
"""The whole model, with the blocks of the last two levels under names by their kind."""


def config_from_reference(arguments: Mapping[str, Any]) -> MambaVisionConfig:
    """Our configuration for the arguments of the original's constructor; those left out are the published T's.

    Args:
        arguments: Such as `{"dim": 96, "in_dim": 64, "depths": [3, 3, 7, 5]}`; `resolution` is the images' size.

    Raises:
        ValueError: An argument is unknown, or its value is.
        NotImplementedError: An option that this library does not have.

    >>> config_from_reference({"dim": 96, "in_dim": 64, "depths": [3, 3, 7, 5]}).dims
    (96, 192, 384, 768)
    """
    known = [*_RENAMED, *_TRANSLATED]
    for name in arguments:
        if name not in known:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, known)}")
    theirs = _TRANSLATED | dict(arguments)
    for name in ("drop_rate", "attn_drop_rate"):
        if theirs[name]:
            raise NotImplementedError(f"config_from_reference: there is no {name}, only stochastic depth.")
    ours = {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}
    return MambaVisionConfig(
        **ours,
        img_size=theirs["resolution"],
        windows=tuple(theirs["window_size"][2:]),
        heads=tuple(theirs["num_heads"][2:]),
        qk_norm=bool(theirs["qk_scale"]),
    )


def convert(state: Mapping[str, np.ndarray], config: MambaVisionConfig, where: str = "convert") -> dict[str, np.ndarray]:
    """Converts a published state dict, statistics of the batch norms included, to arrays of ours.

    Args:
        state: Arrays by the original's names, with or without a leading `module.` or `model.`.
        config: The configuration of the model they are for.
        where: What to call the state dict in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model; one message lists all differences.
    """
    abstract = nnx.eval_shape(lambda: registry.build("mambavision", config))
    state = {re.sub(r"^(module\.|model\.)+", "", name): x for name, x in state.items()}
    state = {_by_kind(name, config): x for name, x in without_counters(state).items()}
    return TABLE.to_ours(state, model_arrays(abstract), where)


def to_reference(arrays: Mapping[str, Any], config: MambaVisionConfig) -> dict[str, np.ndarray]:
    """Converts arrays of ours, as `checkpoints.arrays.model_arrays` gives them, or gradients, to the original's layout."""
    return with_counters({_by_number(name, config): x for name, x in TABLE.to_source(arrays).items()})


def load(
    path: str | Path, variant: str | Mapping[str, Any], *, allow_pickle: bool = False, **overrides: Any
) -> MambaVision:
    """Loads a published checkpoint. Its licence is for non-commercial use.

    Args:
        path: A `.safetensors` file, or a `.pth.tar` file.
        variant: Which model it is: one of our names, such as `"mambavision_tiny"`, or a mapping with the arguments of
            the original's constructor.
        allow_pickle: Whether a `.pth.tar` file may be read; see `read_torch_file`.
        **overrides: Fields of `MambaVisionConfig` in which this checkpoint differs, such as `num_classes=10`.

    Returns:
        The model.

    Raises:
        ValueError: The file cannot be read, or does not fit the configuration; one message lists all differences.
        ImportError: A `.pth.tar` file, and PyTorch is not installed.
    """
    config = config_from_reference(variant) if isinstance(variant, Mapping) else registry.model_config(variant)
    if not isinstance(config, MambaVisionConfig):
        raise errors.bad_argument("from_torch.mambavision.load", "variant", variant, "a MambaVision model")
    config = override(config, overrides, "from_torch.mambavision.load")
    model = nnx.eval_shape(lambda: registry.build("mambavision", config))
    state = read_torch_file(path, allow_pickle=allow_pickle)
    set_model_arrays(model, convert(state, config, str(path)))
    logger.info("Loaded %d arrays of the original layout from %s.", len(state), path)
    return model


def _by_kind(name: str, config: MambaVisionConfig) -> str:
    """A published name of the last two levels with the kind of its block, and its number among those of its kind."""
    found = re.match(r"levels\.([23])\.blocks\.(\d+)\.", name)
    if not found:
        return name
    level, index = map(int, found.groups())
    scans = -(-config.depths[level] // 2)
    kind, number = ("mamba", index) if index < scans else ("attention", index - scans)
    return f"levels.{level}.{kind}.{number}.{name[found.end() :]}"


def _by_number(name: str, config: MambaVisionConfig) -> str:
    """The inverse of `_by_kind`."""
    found = re.match(r"levels\.([23])\.(mamba|attention)\.(\d+)\.", name)
    if not found:
        return name
    level, kind, number = int(found[1]), found[2], int(found[3])
    index = number if kind == "mamba" else number - (-config.depths[level] // 2)
    return f"levels.{level}.blocks.{index}.{name[found.end() :]}"
