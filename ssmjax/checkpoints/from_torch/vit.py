"""ViT: from and to the key layout of timm's checkpoints, which are also DeiT's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch.image_parts import linear_rules, norm_rules
from ssmjax.checkpoints.from_torch.loading import load_model
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.models import registry
from ssmjax.models.vit import ViT, ViTConfig

__all__ = ["TABLE", "convert", "load", "to_reference"]

TABLE = KeyTable(
    (
        Rule("cls_token", "cls_token"),
        Rule("pos_embed", "pos_embed"),
        *linear_rules("patch_embed.proj", "patch_embed.proj", "patch_conv"),
        *norm_rules("blocks.{i}.norm1", "blocks.norm1"),
        *linear_rules("blocks.{i}.attn.qkv", "blocks.attn.qkv"),
        *linear_rules("blocks.{i}.attn.proj", "blocks.attn.proj"),
        *norm_rules("blocks.{i}.norm2", "blocks.norm2"),
        *linear_rules("blocks.{i}.mlp.fc1", "blocks.mlp.fc1"),
        *linear_rules("blocks.{i}.mlp.fc2", "blocks.mlp.fc2"),
        *norm_rules("norm", "norm"),
        *linear_rules("head", "head"),
    )
)
"""The whole model."""


def convert(state: Mapping[str, np.ndarray], config: ViTConfig, where: str = "convert") -> dict[str, np.ndarray]:
    """Converts a state dict of timm's `VisionTransformer` to arrays of ours.

    Args:
        state: Arrays by timm's names.
        config: The configuration of the model they are for.
        where: What to call the state dict in a message.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model; one message lists all differences.
    """
    abstract = nnx.eval_shape(lambda: registry.build("vit", config))
    return TABLE.to_ours(state, model_arrays(abstract), where)


def to_reference(arrays: Mapping[str, Any], config: ViTConfig) -> dict[str, np.ndarray]:
    """Converts arrays of ours, as `checkpoints.arrays.model_arrays` names them, or gradients, to timm's layout."""
    del config
    return TABLE.to_source(arrays)


def load(path: str | Path, variant: str, *, allow_pickle: bool = False, **overrides: Any) -> ViT:
    """Loads a checkpoint of timm's layout.

    Args:
        path: A `.safetensors` file, or a `.pth` file.
        variant: One of our names, such as `"vit_tiny"`.
        allow_pickle: Whether a `.pth` file may be read; see `read_torch_file`.
        **overrides: Fields of `ViTConfig` in which this checkpoint differs, such as `num_classes=10`.

    Raises:
        ValueError: The file cannot be read, or does not fit the configuration; one message lists all differences.
        ImportError: A `.pth` file, and PyTorch is not installed.
    """
    return load_model("vit", path, variant, convert, allow_pickle=allow_pickle, overrides=overrides)
