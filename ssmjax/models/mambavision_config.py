"""The configuration of MambaVision, and its published sizes."""

import dataclasses
from typing import no_type_check

from ssmjax.models.config import ComputeDtype, check_fields, require

__all__ = ["SIZES", "MambaVisionConfig"]


@no_type_check
@dataclasses.dataclass(frozen=True)
class MambaVisionConfig:
    """Everything that makes a MambaVision; the defaults are those of the T. The original's names are in brackets.

    Attributes:
        img_size: The side of the images in pixels, or (rows, columns); no parameter depends on it.
        in_channels: Their channels [`in_chans`].
        num_classes: The number of outputs; 0 makes a model without head, whose output is its features.
        dim: The width of the first level; each level doubles it.
        in_dim: The width between the two convolutions of the embedding.
        depths: The blocks of each of the four levels.
        heads: The attention heads of the third and the fourth level [the last two of `num_heads`].
        windows: The sides of their windows, in tokens [the last two of `window_size`].
        mlp_ratio: The hidden width of the perceptrons by their outer one.
        d_state: The state size of a channel of the mixers.
        d_conv: The taps of their convolutions.
        qkv_bias: Whether attention's map to queries, keys and values has a bias.
        qk_norm: Whether queries and keys are normalized [`qk_scale`, whose truth value it is].
        layer_scale: The initial value of a learned factor on the branches of the last two levels; None for none.
        layer_scale_conv: The initial layer scale of the convolutions of the first two stages.
        drop_path_rate: The stochastic depth of the last block; it grows linearly from 0.
        dtype: What to compute in. Parameters, scans, norms and logits are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> MambaVisionConfig().grids
    ((56, 56), (28, 28), (14, 14), (7, 7))
    """

    img_size: int | tuple[int, int] = 224
    in_channels: int = 3
    num_classes: int = 1000
    dim: int = 80
    in_dim: int = 32
    depths: tuple[int, int, int, int] = (1, 3, 8, 4)
    heads: tuple[int, int] = (8, 16)
    windows: tuple[int, int] = (14, 7)
    mlp_ratio: float = 4.0
    d_state: int = 8
    d_conv: int = 3
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    layer_scale_conv: float | None = None
    drop_path_rate: float = 0.0
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("in_channels", "dim", "in_dim", "d_state", "d_conv"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        for field in ("depths", "heads", "windows"):
            require(self, field, min(getattr(self, field)) >= 1, "of positive integers")
        require(self, "num_classes", self.num_classes >= 0, "at least 0 (0 for a model without head)")
        require(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "in [0, 1)")
        require(self, "mlp_ratio", self.mlp_ratio > 0, "positive")
        wide = all(self.dims[level + 2] % heads == 0 for level, heads in enumerate(self.heads))
        require(self, "heads", wide, f"divisors of the widths {self.dims[2:]}")
        fitting = tuple(min(side, *grid) for side, grid in zip(self.windows, self.grids[2:], strict=True))
        remedy = f"Use windows={fitting} for these images, or larger images: most of a window would be padding."
        require(self, "windows", self.windows == fitting, f"no larger than the maps, {self.grids[2:]}", remedy)

    @property
    def size(self) -> tuple[int, int]:
        """The images' rows and columns."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def dims(self) -> tuple[int, ...]:
        """The width of each level."""
        return tuple(self.dim * 2**level for level in range(4))

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The rows and columns of the map of each level: a 4th of the image's, an 8th, a 16th, a 32nd, rounded up."""
        return tuple((-(-self.size[0] // side), -(-self.size[1] // side)) for side in (4, 8, 16, 32))


SIZES = {
    "mambavision_tiny": MambaVisionConfig(),
    "mambavision_tiny2": MambaVisionConfig(depths=(1, 3, 11, 4)),
    "mambavision_small": MambaVisionConfig(dim=96, in_dim=64, depths=(3, 3, 7, 5)),
    "mambavision_base": MambaVisionConfig(dim=128, in_dim=64, depths=(3, 3, 10, 5), layer_scale=1e-5),
    "mambavision_large": MambaVisionConfig(dim=196, in_dim=64, depths=(3, 3, 10, 5), heads=(16, 32), layer_scale=1e-5),
    "mambavision_large2": MambaVisionConfig(dim=196, in_dim=64, depths=(3, 3, 12, 5), heads=(16, 32), layer_scale=1e-5),
}
"""The published sizes by our names: T, T2, S, B, L and L2."""
