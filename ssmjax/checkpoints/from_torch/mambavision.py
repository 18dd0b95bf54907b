"""MambaVision: from and to the key layout of the published checkpoints, which are for non-commercial use."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch.image_parts import linear_rules, norm_rules, with_counters, without_counters
from ssmjax.checkpoints.from_torch.loading import load_model
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.models import registry
from ssmjax.models.mambavision import MambaVision, MambaVisionConfig

__all__ = ["MIXER", "config_from_reference", "convert", "load", "table", "to_reference"]

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


def _mixer_rules(source: str, target: str, stack: tuple[int, ...] | None = None) -> tuple[Rule, ...]:
    """The rules of the scanning mixer."""
    linears = ("in_proj", "x_proj", "dt_proj", "out_proj")
    rules = (
        Rule(f"{source}A_log", f"{target}A_log"),
        Rule(f"{source}D", f"{target}D"),
        *(rule for name in linears for rule in linear_rules(source + name, target + name)),
        Rule(f"{source}conv1d_x.weight", f"{target}conv1d_x", "conv1d"),
        Rule(f"{source}conv1d_z.weight", f"{target}conv1d_z", "conv1d"),
    )
    return tuple(dataclasses.replace(rule, stack=stack) for rule in rules)


def _level_rules(level: int, depth: int) -> tuple[Rule, ...]:
    """The blocks of one of the last two levels: the first half scans, the others attend; each is a stack of ours."""
    theirs, scans, rules = f"levels.{level}.blocks.{{j}}.", -(-depth // 2), []
    for kind, stack in (("mamba", tuple(range(scans))), ("attention", tuple(range(scans, depth)))):
        ours = f"levels.{level}.{kind}."
        mixers = (
            *linear_rules(f"{theirs}mixer.qkv", f"{ours}mixer.qkv"),
            *linear_rules(f"{theirs}mixer.proj", f"{ours}mixer.proj"),
            *norm_rules(f"{theirs}mixer.q_norm", f"{ours}mixer.q_norm"),
            *norm_rules(f"{theirs}mixer.k_norm", f"{ours}mixer.k_norm"),
        )
        block = (
            *norm_rules(f"{theirs}norm1", f"{ours}norm1"),
            *norm_rules(f"{theirs}norm2", f"{ours}norm2"),
            *linear_rules(f"{theirs}mlp.fc1", f"{ours}mlp.fc1"),
            *linear_rules(f"{theirs}mlp.fc2", f"{ours}mlp.fc2"),
            Rule(f"{theirs}gamma_1", f"{ours}gamma_1"),
            Rule(f"{theirs}gamma_2", f"{ours}gamma_2"),
            *(_mixer_rules(f"{theirs}mixer.", f"{ours}mixer.") if kind == "mamba" else mixers),
        )
        rules += [dataclasses.replace(rule, stack=stack) for rule in block]
    return tuple(rules)


MIXER = KeyTable(_mixer_rules("", ""))
"""The scanning mixer alone."""


def table(config: MambaVisionConfig) -> KeyTable:
    """The whole model.

    >>> table(MambaVisionConfig()).rules[0].source
    'patch_embed.conv_down.0.weight'
    """
    return KeyTable(
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
            *_level_rules(2, config.depths[2]),
            *_level_rules(3, config.depths[3]),
            Rule("levels.{s}.downsample.reduction.0.weight", "levels.{s}.downsample.conv.kernel", "patch_conv"),
            *norm_rules("norm", "norm"),
            *linear_rules("head", "head"),
        )
    )


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


def convert(
    state: Mapping[str, np.ndarray], config: MambaVisionConfig, where: str = "convert"
) -> dict[str, np.ndarray]:
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
    return table(config).to_ours(without_counters(state), model_arrays(abstract), where)


def to_reference(arrays: Mapping[str, Any], config: MambaVisionConfig) -> dict[str, np.ndarray]:
    """Converts arrays of ours, as `checkpoints.arrays.model_arrays` names them, or gradients, to the other layout."""
    return with_counters(table(config).to_source(arrays))


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
    options = dict(allow_pickle=allow_pickle, overrides=overrides)
    return load_model("mambavision", path, variant, convert, config_from_reference, **options)
