"""The ends of a stage of a hierarchical vision model: the embedding of an image as a map, and the halving of a map."""

import itertools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from ssmjax import errors, init
from ssmjax.layers.common.norms import BatchNorm, LayerNorm, RMSNorm, make_norm
from ssmjax.layers.common.parameters import with_kinds
from ssmjax.shapes import Array, Float, Images

__all__ = ["Downsample", "ImageEmbed", "image_conv", "map_norm", "normalize_map"]

Embedding = Literal["patch", "conv"]
"""See `ImageEmbed`."""

Downsampling = Literal["merge", "conv2", "conv3"]
"""See `Downsample`."""

_DRAW = initializers.normal(0.02)


def image_conv(
    before: int,
    after: int,
    taps: int,
    stride: int = 1,
    *,
    padding: int = 0,
    use_bias: bool = True,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution of images with PyTorch's initial values: uniform in `[-s, s]`, `s = 1 / sqrt(before * taps**2)`.

    Args:
        before: The channels that come in.
        after: Those that go out.
        taps: The rows and columns of a filter.
        stride: The distance between its places.
        padding: The zeros on each side.
        use_bias: Whether there is a bias.
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    >>> image_conv(3, 8, 3, 2, padding=1, rngs=nnx.Rngs(0)).kernel.shape
    (3, 3, 3, 8)
    """
    conv = nnx.Conv(
        before,
        after,
        (taps, taps),
        stride,
        padding=padding,
        use_bias=use_bias,
        kernel_init=init.fan_in_uniform(),
        bias_init=init.uniform((before * taps**2) ** -0.5),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
    return with_kinds(conv)


def map_norm(kind: str, d_model: int, *, eps: float = 1e-5, dtype: DTypeLike = jnp.float32):
    """The norm of a map by its name (see `make_norm`); a batch norm keeps PyTorch's statistics.

    >>> map_norm("batch", 8).unbiased
    True
    """
    return make_norm(kind, d_model, eps=eps, dtype=dtype, **({"unbiased": True} if kind == "batch" else {}))


def normalize_map(norm: LayerNorm | RMSNorm | BatchNorm, x: Images, train: bool = False) -> Images:
    """Applies a norm to a map; a batch norm is told whether it is trained."""
    return norm(x, train=train) if isinstance(norm, BatchNorm) else norm(x)


class ImageEmbed(nnx.Module):
    """From an image to a map of tokens, (b y x d), of a `patch_size`-th of its rows and columns.

    * `"patch"` (VMamba's v1): one convolution of one patch each, and a norm.
    * `"conv"` (v2): two overlapping convolutions of half the stride, with half the width, a norm and GELU between, and
      a norm after.

    Args:
        d_model: The width of a token.
        kind: `"patch"` or `"conv"`.
        patch_size: The side of a token in pixels; even for `"conv"`, whose filters are `patch_size / 2 + 1` wide.
        in_channels: The channels of the image.
        norm: A name of `make_norm`, or None for no norm.
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Raises:
        ValueError: The kind is unknown, or the patch size odd.

    >>> import jax.numpy as jnp
    >>> ImageEmbed(8, rngs=nnx.Rngs(0))(jnp.zeros((2, 16, 12, 3))).shape
    (2, 4, 3, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        kind: Embedding = "conv",
        patch_size: int = 4,
        in_channels: int = 3,
        norm: str | None = "layer",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kind not in get_args(Embedding):
            raise ValueError(f"ImageEmbed: {errors.unknown_name('kind', kind, get_args(Embedding))}")
        if kind == "conv" and (patch_size % 2 or patch_size < 4):
            raise errors.bad_argument(
                "ImageEmbed", "patch_size", patch_size, "even and at least 4 for kind='conv'", "Or use kind='patch'."
            )
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        if kind == "patch":
            convs = [image_conv(in_channels, d_model, patch_size, patch_size, **options)]
        else:
            half = patch_size // 2
            widths = (in_channels, d_model // 2, d_model)
            convs = [image_conv(a, b, half + 1, half, padding=1, **options) for a, b in itertools.pairwise(widths)]
        self.convs = nnx.data(convs)
        norms = [] if norm is None else [map_norm(norm, c.out_features, dtype=dtype) for c in convs]
        self.norms = nnx.data(norms)

    def __call__(
        self, images: Float[Array, "b y x channels"], *, train: bool = False
    ) -> Float[jax.Array, "b rows columns d"]:
        """Embeds (b y x channels); `train` updates the statistics of batch norms."""
        x = images
        for i, conv in enumerate(self.convs):
            x = jax.nn.gelu(x, approximate=False) if i else x
            x = conv(x)
            x = normalize_map(self.norms[i], x, train) if len(self.norms) else x
        return x


class Downsample(nnx.Module):
    """Halves the rows and columns of a map.

    * `"merge"` (VMamba's v1): four neighbours are concatenated, normalized and mapped linearly; an odd size is padded
      with zeros at its end.
    * `"conv2"` (v2): a convolution of 2x2 pixels, and a norm; an odd last row or column is dropped.
    * `"conv3"` (v3): a convolution of 3x3 pixels with stride 2, and a norm; an odd size is rounded up.

    Args:
        d_model: The width that goes out.
        before: The width that comes in.
        kind: One of the names above.
        norm: A name of `make_norm`, or None for no norm.
        use_bias: Whether the convolution has a bias.
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Raises:
        ValueError: The kind is unknown.

    >>> import jax.numpy as jnp
    >>> Downsample(8, before=4, rngs=nnx.Rngs(0))(jnp.zeros((1, 5, 4, 4))).shape
    (1, 3, 2, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        before: int,
        kind: Downsampling = "conv3",
        norm: str | None = "layer",
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if kind not in get_args(Downsampling):
            raise ValueError(f"Downsample: {errors.unknown_name('kind', kind, get_args(Downsampling))}")
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.kind = kind
        self.norm = None if norm is None else map_norm(norm, 4 * before if kind == "merge" else d_model, dtype=dtype)
        if kind == "merge":
            reduction = nnx.Linear(4 * before, d_model, use_bias=False, kernel_init=_DRAW, **options)
            self.reduction = with_kinds(reduction)
        else:
            taps = 2 if kind == "conv2" else 3
            self.conv = image_conv(before, d_model, taps, 2, padding=taps - 2, use_bias=use_bias, **options)

    def __call__(self, x: Images, *, train: bool = False) -> Float[jax.Array, "b rows columns e"]:
        """Halves (b y x d); `train` updates the statistics of a batch norm."""
        if self.kind == "merge":
            x = _neighbours(x)
            return self.reduction(x if self.norm is None else normalize_map(self.norm, x, train))
        x = self.conv(x)
        return x if self.norm is None else normalize_map(self.norm, x, train)


def _neighbours(x: Images) -> Float[jax.Array, "b rows columns e"]:
    """Returns the 2x2 pixels of each place beside each other; of the four, the second is below the first."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    # One axis at a time: a reshape of two has no sharding that jax knows.
    return rearrange(rearrange(x, "b (y i) x d -> b y i x d", i=2), "b y i (x j) d -> b y x (j i d)", j=2)
