"""The configuration of Vision Mamba."""

import dataclasses
from typing import Literal, no_type_check

from ssmjax.layers.vision.patch_embed import check_cut
from ssmjax.models.config import ComputeDtype, check_fields, require

__all__ = ["VimConfig"]


@no_type_check
@dataclasses.dataclass(frozen=True)
class VimConfig:
    """Everything that makes a Vim; the defaults are those of Vim-tiny. The original's names are in brackets.

    Attributes:
        img_size: The side of the images in pixels, or (rows, columns).
        in_channels: Their channels [`channels`].
        patch_size: The side of a patch in pixels; the convolutional stem uses only the stride.
        stride: The distance between patches; None means `patch_size`.
        stem: `"patch"`, one convolution, as in the paper; or `"conv"`, small convolutions, for small images.
        num_classes: The number of outputs; 0 makes a model without head, whose output is its features.
        d_model: The width of a token [`embed_dim`].
        depth: The number of blocks.
        d_state: The state size of a channel.
        d_conv: The taps of the short convolutions.
        expand: The inner width of a block is `expand * d_model`.
        dt_rank: The rank of the step-size projection; None means `ceil(d_model / 16)`.
        dt_min: The smallest initial step size.
        dt_max: Largest initial step size.
        dt_init: How the step-size projection starts, `"random"` (uniform) or `"constant"`.
        dt_scale: A factor on its initial values.
        dt_floor: Initial step sizes below it are raised to it [`dt_init_floor`].
        conv_bias: Whether the short convolutions have a bias.
        mixer_bias: Whether `in_proj` and `out_proj` of the mixers have one [`bias`].
        bidirectional: The mixer, `"v2"`, `"v1"` or `"none"` (see `BiMamba`) [`bimamba_type`].
        divide_out: Whether a `"v2"` mixer halves the sum of its directions [`if_divide_out`].
        alternate_layers: Blocks in pairs of which the second reads the flipped sequence; both get the same input, and
            the sum of their outputs goes on [`if_bidirectional`].
        class_token: Where the class token stands: `"middle"`, `"head"`, `"double"` (one at each end, averaged) or
            `"none"` [`if_cls_token`, `use_middle_cls_token`, `use_double_cls_token`].
        pool: What is read where there is no class token: the `"last"` token, the `"mean"` of all, the `"max"` of the
            logits of all, or `"all"` of them [`final_pool_type`, where `"none"` means the last].
        pos_embed: Whether a learned position embedding is added [`if_abs_pos_embed`].
        rope: Whether the input of every block is turned by its place in the grid [`if_rope`].
        rope_residual: Whether the residual stream is turned too [`if_rope_residual`].
        rope_pretrained_side: The side of the grid whose range positions are scaled to; None means the grid's own
            [`pt_hw_seq_len`].
        rope_skips: `"class"`: class tokens are not turned, wherever they stand. `"first"`: the original's rule, which
            takes the first token of an odd number for the class token; it differs where the class token is in the
            middle.
        norm: `"rms"` or `"layer"` [`rms_norm`].
        norm_eps: Added to the variance [`norm_epsilon`].
        layer_scale: The initial value of a learned factor on the output of each mixer; None for no factor
            [`init_layer_scale`].
        float32_residual: Whether the residual stream is float32 under any compute dtype [`residual_in_fp32`].
        drop_rate: The dropout after the position embedding.
        drop_path_rate: The stochastic depth of the last block; see `drop_path_rates`. The published recipes use 0 for
            Vim-tiny and 0.05 for Vim-small.
        scan_together: Whether both directions of a mixer run as one scan of twice the channels, see `BiMamba`; for
            speed only.
        dtype: What to compute in. Parameters, scans, norms and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> VimConfig(img_size=32, patch_size=4).grid
    (8, 8)
    """

    img_size: int | tuple[int, int] = 224
    in_channels: int = 3
    patch_size: int = 16
    stride: int | None = None
    stem: Literal["patch", "conv"] = "patch"
    num_classes: int = 1000
    d_model: int = 192
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_init: Literal["random", "constant"] = "random"
    dt_scale: float = 1.0
    dt_floor: float = 1e-4
    conv_bias: bool = True
    mixer_bias: bool = False
    bidirectional: Literal["v2", "v1", "none"] = "v2"
    divide_out: bool = True
    alternate_layers: bool = False
    class_token: Literal["middle", "head", "double", "none"] = "middle"
    pool: Literal["last", "mean", "max", "all"] = "mean"
    pos_embed: bool = True
    rope: bool = False
    rope_residual: bool = False
    rope_pretrained_side: int | None = None
    rope_skips: Literal["class", "first"] = "class"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    layer_scale: float | None = None
    float32_residual: bool = True
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    scan_together: bool = False
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("in_channels", "patch_size", "d_model", "depth", "d_state", "d_conv", "expand"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("stride", "dt_rank", "rope_pretrained_side"):
            require(self, field, getattr(self, field) is None or getattr(self, field) >= 1, "at least 1, or None")
        for field in ("drop_rate", "drop_path_rate"):
            require(self, field, 0 <= getattr(self, field) < 1, "in [0, 1)")
        require(self, "num_classes", self.num_classes >= 0, "at least 0 (0 for a model without head)")
        require(self, "norm_eps", self.norm_eps > 0, "positive")
        require(self, "dt_min", 0 < self.dt_min <= self.dt_max, f"positive, and at most dt_max={self.dt_max}")
        for field in ("dt_scale", "dt_floor"):
            require(self, field, getattr(self, field) >= 0, "at least 0")
        step = self.step
        if self.stem == "patch":
            require(self, "img_size", min(self.size) >= self.patch_size, f"at least the patch size {self.patch_size}")
            check_cut("VimConfig", "img_size", self.size, self.patch_size, step)
        else:
            remedy = "Or use the plain patches: stem='patch'."
            require(self, "patch_size", step >= 2 and step & (step - 1) == 0, "a power of two for stem='conv'", remedy)
            require(self, "img_size", min(self.size) >= step, f"at least the patch size {step}")
        require(self, "depth", not self.alternate_layers or self.depth % 2 == 0, "even with alternate_layers=True")
        if self.rope:
            require(self, "d_model", self.d_model % 4 == 0, "a multiple of 4 with rope=True")
            skipped = self.length % 2 if self.rope_skips == "first" else self.class_tokens
            remedy = "Use rope_skips='class'."
            require(self, "rope_skips", skipped == self.class_tokens, "consistent with the number of tokens", remedy)

    @property
    def size(self) -> tuple[int, int]:
        """The images' rows and columns."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def step(self) -> int:
        """The distance between patches."""
        return self.patch_size if self.stride is None else self.stride

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of patches."""
        if self.stem == "conv":  # halved, upwards, by each convolution
            rows, columns = (-(-side // self.step) for side in self.size)
        else:
            rows, columns = ((side - self.patch_size) // self.step + 1 for side in self.size)
        return rows, columns

    @property
    def class_tokens(self) -> int:
        """The number of class tokens."""
        return {"none": 0, "double": 2}.get(self.class_token, 1)

    @property
    def length(self) -> int:
        """The number of tokens, class tokens included."""
        return self.grid[0] * self.grid[1] + self.class_tokens

    @property
    def class_positions(self) -> tuple[int, ...]:
        """Where the class tokens stand in the sequence."""
        middle = self.grid[0] * self.grid[1] // 2
        return {"none": (), "head": (0,), "middle": (middle,), "double": (0, self.length - 1)}[self.class_token]
