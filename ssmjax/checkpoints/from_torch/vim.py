"""Vim: from and to the key layout of the original implementation's checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch.loading import load_model
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.layers.common.rope import axial_rope_table
from ssmjax.models import registry
from ssmjax.models.vim import Vim, VimConfig

__all__ = ["FACTORIES", "TABLE", "config_from_reference", "convert", "load", "to_reference"]


def _branch(suffix: str) -> tuple[Rule, ...]:
    """The parts of one direction of a mixer."""
    theirs, ours = "layers.{i}.mixer", "layers.mixer"
    return (
        Rule(f"{theirs}.conv1d{suffix}.weight", f"{ours}.conv1d{suffix}.kernel", "conv1d"),
        Rule(f"{theirs}.conv1d{suffix}.bias", f"{ours}.conv1d{suffix}.bias"),
        Rule(f"{theirs}.x_proj{suffix}.weight", f"{ours}.x_proj{suffix}.kernel", "linear"),
        Rule(f"{theirs}.dt_proj{suffix}.weight", f"{ours}.dt_proj{suffix}.kernel", "linear"),
        Rule(f"{theirs}.dt_proj{suffix}.bias", f"{ours}.dt_proj{suffix}.bias"),
        Rule(f"{theirs}.D{suffix}", f"{ours}.D{suffix}"),
    )


TABLE = KeyTable(
    (
        Rule("patch_embed.proj.weight", "patch_embed.proj.kernel", "patch_conv"),
        Rule("patch_embed.proj.bias", "patch_embed.proj.bias"),
        Rule("cls_token", "cls_token"),
        Rule("cls_token_head", "cls_token_head"),
        Rule("cls_token_tail", "cls_token_tail"),
        Rule("pos_embed", "pos_embed"),
        Rule("layers.{i}.norm.weight", "layers.norm.scale"),
        Rule("layers.{i}.norm.bias", "layers.norm.bias"),
        Rule("layers.{i}.mixer.in_proj.weight", "layers.mixer.in_proj.kernel", "linear"),
        Rule("layers.{i}.mixer.in_proj.bias", "layers.mixer.in_proj.bias"),
        Rule("layers.{i}.mixer.out_proj.bias", "layers.mixer.out_proj.bias"),
        *_branch(""),
        *_branch("_b"),
        Rule("layers.{i}.mixer.A_log", "layers.mixer.A_log"),
        Rule("layers.{i}.mixer.A_b_log", "layers.mixer.A_b_log"),
        Rule("layers.{i}.mixer.out_proj.weight", "layers.mixer.out_proj.kernel", "linear"),
        Rule("layers.{i}.mixer.gamma", "layers.gamma"),
        Rule("norm_f.weight", "norm_f.scale"),
        Rule("norm_f.bias", "norm_f.bias"),
        Rule("head.weight", "head.kernel", "linear"),
        Rule("head.bias", "head.bias"),
    )
)

# The original constructor's arguments: ours with the same meaning, and the original's default.
_RENAMED: dict[str, tuple[str, Any]] = {
    "img_size": ("img_size", 224),
    "patch_size": ("patch_size", 16),
    "stride": ("stride", 16),
    "depth": ("depth", 24),
    "embed_dim": ("d_model", 192),
    "d_state": ("d_state", 16),
    "channels": ("in_channels", 3),
    "num_classes": ("num_classes", 1000),
    "drop_rate": ("drop_rate", 0.0),
    "drop_path_rate": ("drop_path_rate", 0.1),
    "norm_epsilon": ("norm_eps", 1e-5),
    "residual_in_fp32": ("float32_residual", True),
    "if_bidirectional": ("alternate_layers", False),
    "if_abs_pos_embed": ("pos_embed", True),
    "if_rope": ("rope", False),
    "if_rope_residual": ("rope_residual", False),
    "if_divide_out": ("divide_out", True),
    "init_layer_scale": ("layer_scale", None),
}

# Those that need more than another name, with the original's defaults.
_TRANSLATED: dict[str, Any] = {
    "rms_norm": True,
    "pt_hw_seq_len": 14,
    "final_pool_type": "none",
    "if_bimamba": False,
    "bimamba_type": "v2",
    "if_cls_token": True,
    "use_double_cls_token": False,
    "use_middle_cls_token": True,
    "ssm_cfg": None,
    "flip_img_sequences_ratio": -1.0,
}

# Those without an effect on what a trained model computes: a fused kernel, initial values, and arguments it never reads
# (`if_devide_out` is how the published base model misspells an argument whose default it repeats).
_WITHOUT_EFFECT = ("fused_add_norm", "initializer_cfg", "device", "dtype", "ft_seq_len", "if_devide_out")

_PUBLISHED = {"final_pool_type": "mean", "rms_norm": True, "bimamba_type": "v2", "if_divide_out": True}

FACTORIES: dict[str, dict[str, Any]] = {
    "vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {"embed_dim": 192},
    "vim_tiny_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {
        "embed_dim": 192,
        "stride": 8,
    },
    "vim_small_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {"embed_dim": 384},
    "vim_small_patch16_stride8_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2": {
        "embed_dim": 384,
        "stride": 8,
    },
    "vim_base_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_middle_cls_token_div2": {"embed_dim": 768},
}
"""The original's published model functions, and the constructor arguments in which they differ."""


def config_from_reference(arguments: Mapping[str, Any]) -> VimConfig:
    """Our configuration for the arguments of the original's constructor; those left out have the original's defaults.

    Args:
        arguments: Such as `{"embed_dim": 384, "if_rope": True}`.

    Raises:
        ValueError: An argument is unknown, or its value is.
        NotImplementedError: An option that this library does not have.

    >>> config_from_reference({"embed_dim": 384, "use_middle_cls_token": False}).class_token
    'head'
    """
    known = [*_RENAMED, *_TRANSLATED, *_WITHOUT_EFFECT]
    for name in arguments:
        if name not in known:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, known)}")
    theirs = _TRANSLATED | dict(arguments)
    if theirs["flip_img_sequences_ratio"] > 0:
        raise NotImplementedError(
            "config_from_reference: there is no random flip of sequences (flip_img_sequences_ratio)."
        )
    ours = {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}
    ours |= _mixer_options(theirs["ssm_cfg"] or {})
    ours["norm"] = "rms" if theirs["rms_norm"] else "layer"
    ours["bidirectional"] = "v1" if theirs["if_bimamba"] else theirs["bimamba_type"]
    ours["pool"] = "last" if theirs["final_pool_type"] == "none" else theirs["final_pool_type"]
    if not theirs["if_cls_token"]:
        ours["class_token"] = "none"
    elif theirs["use_double_cls_token"]:
        ours["class_token"] = "double"
    else:
        ours["class_token"] = "middle" if theirs["use_middle_cls_token"] else "head"
    if ours["rope"]:
        ours["rope_pretrained_side"] = theirs["pt_hw_seq_len"]
        ours["rope_skips"] = "first" if ours["class_token"] == "middle" else "class"
    return VimConfig(**ours)


def convert(state: Mapping[str, np.ndarray], config: VimConfig, where: str = "convert") -> dict[str, np.ndarray]:
    """Converts a state dict of the original to arrays of ours.

    Args:
        state: Arrays by the original's names.
        config: The configuration of the model they are for.
        where: What to call the state dict in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model (one message lists all differences), or a
            rotary table in `state` is not the one that `config` gives.
    """
    abstract = nnx.eval_shape(lambda: registry.build("vim", config))
    tables = _rope_tables(config)
    ours = TABLE.to_ours({name: x for name, x in state.items() if name not in tables}, model_arrays(abstract), where)
    for name, table in tables.items():
        if name in state and (state[name].shape != table.shape or not np.allclose(state[name], table, atol=1e-5)):
            raise ValueError(
                f"{where}: {name} is not the table that the configuration gives; check rope_pretrained_side."
            )
    return ours


def to_reference(arrays: Mapping[str, Any], config: VimConfig) -> dict[str, np.ndarray]:
    """Converts arrays of ours, as `checkpoints.arrays.model_arrays` gives them, or gradients, to the original's layout.

    The original keeps rotary tables among its parameters; they are added, so that its strict loader takes the result.
    """
    return TABLE.to_source(arrays) | _rope_tables(config)


def load(path: str | Path, variant: str | Mapping[str, Any], *, allow_pickle: bool = False, **overrides: Any) -> Vim:
    """Loads a checkpoint of the original implementation.

    Args:
        path: A `.safetensors` file, or the `.pth` file as published.
        variant: Which model it is: one of our names (`"vim_tiny"`), one of the original's (`FACTORIES`), or a mapping
            with the arguments of its constructor.
        allow_pickle: Whether a `.pth` file may be read; see `read_torch_file`.
        **overrides: Fields of `VimConfig` in which this checkpoint differs, such as `num_classes=10`.

    Returns:
        The model.

    Raises:
        ValueError: The file cannot be read, or does not fit the configuration; one message lists all differences.
        ImportError: A `.pth` file, and PyTorch is not installed.
    """
    if isinstance(variant, str) and variant in FACTORIES:
        variant = _PUBLISHED | FACTORIES[variant]
    options = dict(allow_pickle=allow_pickle, overrides=overrides)
    return load_model("vim", path, variant, convert, config_from_reference, **options)


# The arguments of the original's mixer: ours with the same meaning, and how theirs is written.
_MIXER: dict[str, str] = {
    "d_state": "d_state",
    "d_conv": "d_conv",
    "expand": "expand",
    "dt_rank": "dt_rank",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "dt_init": "dt_init",
    "dt_scale": "dt_scale",
    "dt_init_floor": "dt_floor",
    "conv_bias": "conv_bias",
    "bias": "mixer_bias",
}

# What the model gives to its mixers itself, so that the original fails on a second value; and a switch that loses half.
_MODEL_GIVES = ("layer_idx", "device", "dtype", "bimamba_type", "if_divide_out", "init_layer_scale", "d_model")


def _mixer_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The original's `ssm_cfg`, arguments of its mixer."""
    where, known = "config_from_reference", [*_MIXER, "use_fast_path"]
    for name in options:
        if name in _MODEL_GIVES:
            remedy = "The model gives it to its mixers; use the model's own argument."
            raise errors.bad_argument(where, f"ssm_cfg[{name!r}]", options[name], "left out", remedy)
        if name not in known:
            raise ValueError(f"{where}: {errors.unknown_name('option of ssm_cfg', name, known)}")
    if not options.get("use_fast_path", True):
        raise NotImplementedError(
            f"{where}: ssm_cfg['use_fast_path']=False is a fault of the original, whose slow path leaves out the "
            "direction from the end. Leave it out for that direction, or use bimamba_type='none' for one direction."
        )
    return {_MIXER[name]: None if value == "auto" else value for name, value in options.items() if name in _MIXER}


def _rope_tables(config: VimConfig) -> dict[str, np.ndarray]:
    """The buffers of the original's rotary embedding: (patches, d), each angle for both channels of its pair."""
    if not config.rope:
        return {}
    angles = axial_rope_table(*config.grid, config.d_model, pretrained_side=config.rope_pretrained_side)
    angles = np.repeat(angles, 2, axis=-1)
    return {"rope.freqs_cos": np.cos(angles).astype(np.float32), "rope.freqs_sin": np.sin(angles).astype(np.float32)}
