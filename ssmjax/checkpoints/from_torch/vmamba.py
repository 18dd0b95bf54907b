"""VMamba: from and to the key layout of the original implementation's checkpoints."""

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
from ssmjax.checkpoints.mapping import KeyTable, Layout, Rule
from ssmjax.models import registry
from ssmjax.models.vmamba import VMamba, VMambaConfig, two_of_four

__all__ = ["config_from_reference", "convert", "forward_type_options", "load", "to_reference"]

_DIRECTIONS = {
    **dict.fromkeys(("v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v1", "v2", "v3", "v4", "m0"), "cross"),
    "v051d": "rows",
    "v052d": "rows_both_ways",
    "v052dc": "cascade",
}
_OUTPUT_NORMS = {
    "_onnone": "none",
    "_ondwconv3": "conv",
    "_oncnorm": "layer_conv",
    "_onsoftmax": "softmax",
    "_onsigmoid": "sigmoid",
}
_NORMS = {"ln": "layer", "ln2d": "layer", "bn": "batch"}
_INITIALIZATIONS = {"v0": "mamba", "v1": "normal", "v2": "constant"}
_RENAMED: dict[str, tuple[str, Any]] = {
    "in_chans": ("in_channels", 3),
    "num_classes": ("num_classes", 1000),
    "depths": ("depths", (2, 2, 9, 2)),
    "patch_size": ("patch_size", 4),
    "ssm_d_state": ("d_state", 16),
    "ssm_ratio": ("ssm_ratio", 2.0),
    "ssm_conv": ("d_conv", 3),
    "ssm_conv_bias": ("conv_bias", True),
    "ssm_act_layer": ("activation", "silu"),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "gmlp": ("gated_mlp", False),
    "post_norm": ("post_norm", False),
    "drop_path_rate": ("drop_path_rate", 0.1),
    "patch_norm": ("embed_norm", True),
    "posembed": ("pos_embed", False),
    "imgsize": ("img_size", 224),
}
"""The original's arguments that have another name with us, and its defaults."""

_TRANSLATED: dict[str, Any] = {
    "dims": 96,
    "ssm_dt_rank": "auto",
    "ssm_init": "v0",
    "forward_type": "v2",
    "norm_layer": "ln",
    "downsample_version": "v2",
    "patchembed_version": "v1",
    "ssm_drop_rate": 0.0,
    "mlp_drop_rate": 0.0,
    "mlp_act_layer": "gelu",
}


def forward_type_options(forward_type: str) -> dict[str, Any]:
    """What a `forward_type` of the original means, as fields of `VMambaConfig`.

    Args:
        forward_type: A kind of scan (v0, v01 to v05, v051d, v052d, v052dc, v3, m0) with endings for the gate (`_noz`,
            `_nozact`), an activation after the norm (`_oact`), the norm (`_onnone`, `_ondwconv3`, `_oncnorm`,
            `_onsoftmax`, `_onsigmoid`) and the precision (`_no32`, which changes nothing: scans are float32 here).

    Raises:
        ValueError: There is no such type.
        NotImplementedError: The original's xv types, which do not run there either.

    >>> forward_type_options("v052d_noz")["directions"]
    'rows_both_ways'
    """
    rest = forward_type
    options: dict[str, Any] = {"gate": "activated", "out_norm": "layer", "out_gelu": False, "core": "scan"}
    endings = {"_no32": {}, "_oact": {"out_gelu": True}, "_noz": {"gate": "none"}, "_nozact": {"gate": "linear"}}
    endings |= {ending: {"out_norm": norm} for ending, norm in _OUTPUT_NORMS.items()}
    while found := next((ending for ending in endings if rest.endswith(ending)), None):
        rest, options = rest.removesuffix(found), options | endings[found]
    if rest.startswith("xv") or rest == "v052d3":
        raise NotImplementedError(f"forward_type_options: {forward_type!r} does not run in the original, nor here.")
    errors.require_known("forward_type", rest, _DIRECTIONS)
    return options | {"directions": _DIRECTIONS[rest], "core": "ssd" if rest == "m0" else "scan"}


def config_from_reference(arguments: Mapping[str, Any]) -> VMambaConfig:
    """Our configuration for the arguments of the original's constructor; those left out have the original's defaults.

    Args:
        arguments: Such as `{"dims": 96, "forward_type": "v05_noz"}`.

    Raises:
        ValueError: An argument is unknown, or its value is.
        NotImplementedError: An option that this library does not have.

    >>> config_from_reference({"depths": [2, 2], "dims": 8, "forward_type": "v051d_noz"}).directions
    'rows'
    """
    known = [*_RENAMED, *_TRANSLATED, "use_checkpoint"]
    for name in arguments:
        if name not in known:
            raise ValueError(f"config_from_reference: {errors.unknown_name('argument', name, known)}")
    theirs = _TRANSLATED | dict(arguments)
    for name, here in (("ssm_drop_rate", 0.0), ("mlp_drop_rate", 0.0), ("mlp_act_layer", "gelu")):
        if theirs[name] != here:
            raise NotImplementedError(f"config_from_reference: there is no {name}={theirs[name]!r}, only {here!r}.")
    ours = {name: arguments.get(argument, default) for argument, (name, default) in _RENAMED.items()}
    depths, dims = tuple(ours["depths"]), theirs["dims"]
    ours["dims"] = tuple(dims * 2**i for i in range(len(depths))) if isinstance(dims, int) else tuple(dims)
    ours |= forward_type_options(theirs["forward_type"])
    if theirs["forward_type"] in ("v0", "v0seq"):  # the oldest class has these fixed
        ours |= {"conv_bias": True, "activation": "silu", "d_conv": 3}
    return VMambaConfig(
        **ours,
        dt_rank=None if theirs["ssm_dt_rank"] == "auto" else theirs["ssm_dt_rank"],
        initialization=_INITIALIZATIONS[theirs["ssm_init"]],
        norm=_NORMS[theirs["norm_layer"].lower()],
        downsample={"v1": "merge", "v2": "conv2", "v3": "conv3"}[theirs["downsample_version"]],
        embed={"v1": "patch", "v2": "conv"}[theirs["patchembed_version"]],
    )


def convert(state: Mapping[str, np.ndarray], config: VMambaConfig, where: str = "convert") -> dict[str, np.ndarray]:
    """Converts a state dict of the original to arrays of ours.

    Names of early files and linear maps stored as 1x1 convolutions are accepted. A model with `directions="two"` takes
    the first and the third of four directions, rows and reversed rows.

    Args:
        state: Arrays by the original's names.
        config: The configuration of the model they are for.
        where: What to call the state dict in a message.

    Returns:
        Arrays by our names, as `checkpoints.arrays.set_model_arrays` takes them.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model; one message lists all differences.
    """
    state = {_modern(name): x for name, x in without_counters(state).items()}
    four = any(name.endswith("x_proj_weight") and len(x) == 4 for name, x in state.items())
    if config.directions == "two" and four:
        whole = convert(state, dataclasses.replace(config, directions="cross"), where)
        return {name: two_of_four(name, x) for name, x in whole.items()}
    abstract = nnx.eval_shape(lambda: registry.build("vmamba", config))
    state = dict(_as_published(name, x) for name, x in state.items())
    return _table(config).to_ours(state, model_arrays(abstract), where)


def to_reference(arrays: Mapping[str, Any], config: VMambaConfig) -> dict[str, np.ndarray]:
    """Converts arrays of ours, as `checkpoints.arrays.model_arrays` names them, or gradients, to the other layout."""
    return with_counters(_table(config).to_source(arrays))


def load(path: str | Path, variant: str | Mapping[str, Any], *, allow_pickle: bool = False, **overrides: Any) -> VMamba:
    """Loads a checkpoint of the original implementation.

    Args:
        path: A `.safetensors` file, or the `.pth` file as published.
        variant: Which model it is: one of our names, such as `"vmamba_tiny_s2l5"`, or a mapping with the arguments of
            the original's constructor.
        allow_pickle: Whether a `.pth` file may be read; see `read_torch_file`.
        **overrides: Fields of `VMambaConfig` in which this checkpoint differs, such as `num_classes=10`.

    Returns:
        The model.

    Raises:
        ValueError: The file cannot be read, or does not fit the configuration; one message lists all differences.
        ImportError: A `.pth` file, and PyTorch is not installed.
    """
    options = dict(allow_pickle=allow_pickle, overrides=overrides)
    return load_model("vmamba", path, variant, convert, config_from_reference, **options)


def _table(config: VMambaConfig) -> KeyTable:
    """The key table; where a convolution or a norm stands in a list of modules depends on the options."""
    block, ours = "layers.{s}.blocks.{j}", "stages.{s}.blocks"
    conv = "op.conv2d.1" if config.core == "ssd" else "op.conv2d"
    both = config.out_norm == "layer_conv"
    norm_at, norm_conv_at = ("op.out_norm.0", "op.out_norm.2") if both else ("op.out_norm", "op.out_norm.1")
    down, ours_down = "layers.{s}.downsample", "stages.{s}.downsample"
    rules = [
        Rule("pos_embed", "pos_embed", Layout("1 d y x", "1 (y x) d", {"y": config.grids[0][0]})),
        *linear_rules("patch_embed.0", "patch_embed.convs.0", "patch_conv"),
        *linear_rules("patch_embed.5", "patch_embed.convs.1", "patch_conv"),
        *norm_rules("patch_embed.2", "patch_embed.norms.0"),
        *norm_rules("patch_embed.7", "patch_embed.norms.1"),
        *norm_rules(f"{block}.norm", f"{ours}.norm"),
        *norm_rules(f"{block}.norm2", f"{ours}.norm2"),
        Rule(f"{block}.op.in_proj.weight", f"{ours}.op.in_proj.kernel", "linear"),
        Rule(f"{block}.op.out_proj.weight", f"{ours}.op.out_proj.kernel", "linear"),
        *linear_rules(f"{block}.{conv}", f"{ours}.op.conv2d", "depthwise_conv2d"),
        Rule(f"{block}.op.x_proj_weight", f"{ours}.op.x_proj", "directions"),
        Rule(f"{block}.op.dt_projs_weight", f"{ours}.op.dt_proj", "directions"),
        Rule(f"{block}.op.dt_projs_bias", f"{ours}.op.dt_bias"),
        Rule(f"{block}.op.A_logs", f"{ours}.op.A_log"),
        Rule(f"{block}.op.Ds", f"{ours}.op.D"),
        *norm_rules(f"{block}.{norm_at}", f"{ours}.op.norm"),
        Rule(f"{block}.{norm_conv_at}.weight", f"{ours}.op.norm_conv.kernel", "depthwise_conv2d"),
        *linear_rules(f"{block}.mlp.fc1", f"{ours}.mlp.fc1"),
        *linear_rules(f"{block}.mlp.fc2", f"{ours}.mlp.fc2"),
        Rule(f"{down}.reduction.weight", f"{ours_down}.reduction.kernel", "linear"),
        *linear_rules(f"{down}.1", f"{ours_down}.conv", "patch_conv"),
        *norm_rules(f"{down}.norm" if config.downsample == "merge" else f"{down}.3", f"{ours_down}.norm"),
        *norm_rules("classifier.norm", "norm"),
        *linear_rules("classifier.head", "head"),
    ]
    return KeyTable(tuple(rules))


_OLD_NAMES = (
    (r"patch_embed\.proj\.", "patch_embed.0."),
    (r"patch_embed\.norm\.", "patch_embed.2."),
    (r"(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"(norm|head)\.", r"classifier.\1."),
)


def _modern(name: str) -> str:
    """A name of an early checkpoint in today's spelling."""
    for old, new in _OLD_NAMES:
        if re.match(old, name):
            return re.sub(f"^{old}", new, name)
    return name


def _as_published(name: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """The name and the shape of an array in the published files.

    A linear map may be stored as a convolution of one pixel; the original's one-file form of the model has the four
    directions' maps below each other, as one of four groups.
    """
    if re.search(r"(in_proj|out_proj|fc1|fc2)\.weight$", name) and x.shape[2:] == (1, 1):
        return name, x.reshape(x.shape[:2])
    if name.endswith((".x_proj.weight", ".dt_projs.weight")) and x.ndim == 2 and x.shape[0] % 4 == 0:
        return name.removesuffix(".weight") + "_weight", x.reshape(4, -1, x.shape[1])
    return name, x
