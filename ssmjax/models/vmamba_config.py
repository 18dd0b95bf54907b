"""The configuration of VMamba, and its published sizes."""

import dataclasses
from typing import Any, Literal, no_type_check

from ssmjax.layers.vision.ss2d import Activation, Directions, OutputNorm
from ssmjax.models.config import ComputeDtype, check_fields, require

__all__ = ["SIZES", "VMambaConfig", "two_directions"]


@no_type_check
@dataclasses.dataclass(frozen=True)
class VMambaConfig:
    """Everything that makes a VMamba; the defaults are those of VMamba-T[s1l8]. The original's names are in brackets.

    Attributes:
        img_size: The side of the images in pixels, or (rows, columns); of the parameters only a position embedding
            depends on it.
        in_channels: Their channels [`in_chans`].
        num_classes: The number of outputs; 0 makes a model without head, whose output is its features.
        depths: The blocks of each stage.
        dims: The width of each stage.
        patch_size: The side of a token of the first stage in pixels.
        embed: `"patch"` or `"conv"`, see `ImageEmbed` [`patchembed_version` v1 or v2].
        embed_norm: Whether the embedding is normalized [`patch_norm`].
        pos_embed: Whether a learned position embedding is added [`posembed`].
        downsample: `"merge"`, `"conv2"` or `"conv3"`, see `Downsample` [`downsample_version` v1, v2 or v3].
        norm: `"layer"` or `"batch"` [`norm_layer` ln or ln2d, bn].
        post_norm: Whether a block normalizes the output of its branches, not their input.
        directions: Which ways an image is read, see `SS2D`; the original's `forward_type` has this and the next four.
        core: `"scan"`, or `"ssd"` of Mamba-2 [m0].
        gate: `"none"` [noz], `"activated"` or `"linear"` [nozact].
        out_norm: What follows the sum of the directions, see `SS2D` [on...].
        out_gelu: Whether a GELU follows that [oact].
        d_state: The state size of a channel [`ssm_d_state`].
        ssm_ratio: The inner width of SS2D by its outer one.
        dt_rank: The rank of the step-size projection; None means `ceil(d / 16)` [`ssm_dt_rank`].
        d_conv: The rows and columns of the depthwise convolution [`ssm_conv`].
        conv_bias: Whether it has a bias [`ssm_conv_bias`].
        activation: After it, and on the gate [`ssm_act_layer`].
        initialization: The initial values of A, D and the step sizes, see `SS2D` [`ssm_init` v0, v1 or v2].
        mlp_ratio: The hidden width of the perceptron by its outer one; 0 for none.
        gated_mlp: Whether the perceptron is gated [`gmlp`].
        drop_path_rate: The stochastic depth of the last block; it grows linearly from 0.
        dtype: What to compute in. Parameters, scans, norms and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> VMambaConfig(img_size=64).grids
    ((16, 16), (8, 8), (4, 4), (2, 2))
    """

    img_size: int | tuple[int, int] = 224
    in_channels: int = 3
    num_classes: int = 1000
    depths: tuple = (2, 2, 8, 2)
    dims: tuple = (96, 192, 384, 768)
    patch_size: int = 4
    embed: Literal["patch", "conv"] = "conv"
    embed_norm: bool = True
    pos_embed: bool = False
    downsample: Literal["merge", "conv2", "conv3"] = "conv3"
    norm: Literal["layer", "batch"] = "layer"
    post_norm: bool = False
    directions: Directions = "cross"
    core: Literal["scan", "ssd"] = "scan"
    gate: Literal["none", "activated", "linear"] = "none"
    out_norm: OutputNorm = "layer"
    out_gelu: bool = False
    d_state: int = 1
    ssm_ratio: float = 1.0
    dt_rank: int | None = None
    d_conv: int = 3
    conv_bias: bool = False
    activation: Activation = "silu"
    initialization: Literal["mamba", "normal", "constant"] = "mamba"
    mlp_ratio: float = 4.0
    gated_mlp: bool = False
    drop_path_rate: float = 0.0
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("in_channels", "patch_size", "d_state", "d_conv"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("depths", "dims"):
            values = getattr(self, field)
            whole = all(isinstance(value, int) and value >= 1 for value in values) and len(values) >= 1
            require(self, field, whole, "one positive integer for each stage")
        require(self, "dims", len(self.dims) == len(self.depths), f"as many as depths, {len(self.depths)}")
        require(self, "num_classes", self.num_classes >= 0, "at least 0 (0 for a model without head)")
        require(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "in [0, 1)")
        require(self, "ssm_ratio", self.ssm_ratio > 0, "positive")
        require(self, "mlp_ratio", self.mlp_ratio >= 0, "at least 0 (0 for no perceptron)")
        require(self, "dt_rank", self.dt_rank is None or self.dt_rank >= 1, "at least 1, or None")
        even = self.embed == "patch" or (self.patch_size % 2 == 0 and self.patch_size >= 4)
        require(self, "patch_size", even, "even and at least 4 with embed='conv'", "Or use embed='patch'.")
        least = self.patch_size * (2 if self.downsample == "conv2" else 1) ** (len(self.dims) - 1)
        require(self, "img_size", min(self.size) >= least, f"at least {least} pixels a side")
        if self.core == "ssd":
            remedy = "The published m2 models use 'constant'."
            require(self, "initialization", self.initialization != "mamba", "'normal' or 'constant' for 'ssd'", remedy)
            require(self, "directions", self.directions != "cascade", "another than 'cascade' with core='ssd'")

    @property
    def size(self) -> tuple[int, int]:
        """The images' rows and columns."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of the first map."""
        return self.grids[0]

    @property
    def class_positions(self) -> tuple[int, ...]:
        """There are no class tokens."""
        return ()

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The rows and columns of the map of each stage."""
        half = self.patch_size // 2
        maps = []
        for side in self.size:
            if self.embed == "conv":  # twice a convolution of half + 1 taps, with one zero on each side
                side = (side + 1 - half) // half + 1
                side = (side + 1 - half) // half + 1
            else:
                side = side // self.patch_size
            sides = [side]
            for _ in self.depths[1:]:
                sides.append(sides[-1] // 2 if self.downsample == "conv2" else -(-sides[-1] // 2))
            maps.append(sides)
        return tuple(zip(*maps, strict=True))


def two_directions(config: VMambaConfig) -> VMambaConfig:
    """The same model with rows and reversed rows in place of its four directions."""
    return dataclasses.replace(config, directions="two")


def _sizes() -> dict[str, VMambaConfig]:
    """The published sizes; README of https://github.com/MzeroMiko/VMamba. Drop path is a matter of the recipe."""
    wide = dict(dims=(128, 256, 512, 1024))
    old: dict[str, Any] = dict(
        embed="patch", downsample="merge", gate="activated", d_state=16, ssm_ratio=2.0, conv_bias=True, mlp_ratio=0.0
    )
    ssd: dict[str, Any] = dict(core="ssd", d_state=64, activation="gelu", initialization="constant")
    s1, s2 = (dict(depths=(2, 2, n, 2)) for n in (20, 15))
    return {
        "vmamba_tiny": VMambaConfig(),
        "vmamba_small": VMambaConfig(**s1),
        "vmamba_base": VMambaConfig(**s1, **wide),
        "vmamba_tiny_s2l5": VMambaConfig(depths=(2, 2, 5, 2), ssm_ratio=2.0),
        "vmamba_small_s2l15": VMambaConfig(**s2, ssm_ratio=2.0),
        "vmamba_base_s2l15": VMambaConfig(**s2, **wide, ssm_ratio=2.0),
        "vmamba_tiny_m2": VMambaConfig(depths=(2, 2, 4, 2), **ssd),
        "vmamba_small_m2": VMambaConfig(depths=(2, 2, 12, 2), **ssd),
        "vmamba_base_m2": VMambaConfig(depths=(2, 2, 12, 2), **wide, **ssd),
        "vmamba_vanilla_tiny": VMambaConfig(depths=(2, 2, 9, 2), **old),
        "vmamba_vanilla_small": VMambaConfig(depths=(2, 2, 27, 2), **old),
        "vmamba_vanilla_base": VMambaConfig(depths=(2, 2, 27, 2), **wide, **old),
    }


SIZES = _sizes()
"""The published sizes by our names."""
