"""From images to sequences of patch tokens."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.norms import LayerNorm
from ssmjax.layers.common.parameters import with_kinds
from ssmjax.shapes import Array, Float

__all__ = ["ConvStem", "PatchEmbed", "check_cut"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.lecun_normal()


def check_cut(where: str, argument: str, size: tuple[int, ...], patch_size: int, stride: int) -> None:
    """Checks that patches read an image to its last row and column.

    Args:
        where: The public class, for the message.
        argument: The argument's name.
        size: The rows and columns of the image.
        patch_size: The side of a patch.
        stride: The distance between patches.

    Raises:
        ValueError: Some rows or columns belong to no patch.

    >>> check_cut("example", "img_size", (20, 20), 8, 8)
    Traceback (most recent call last):
    ValueError: example: img_size must be 8 plus a multiple of 8, the patch and the stride, got (20, 20). The last...
    """
    if left := max((side - patch_size) % stride for side in size):
        remedy = (
            f"The last {left} rows or columns would never be read: crop or pad the images, for example to "
            f"{tuple(side - (side - patch_size) % stride for side in size)}."
        )
        wanted = f"{patch_size} plus a multiple of {stride}, the patch and the stride"
        raise errors.bad_argument(where, argument, tuple(size), wanted, remedy)


class PatchEmbed(nnx.Module):
    """Cuts an image into patches and maps each to a token: one convolution, in row-major order.

    Patches overlap where `stride < patch_size` (Vim fine-tunes with a stride of half a patch).

    Args:
        d_model: The width of a token.
        patch_size: The side of a patch, in pixels.
        stride: The distance between patches; by default `patch_size`.
        in_channels: The channels of the image.
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values (LeCun normal; zero bias).

    >>> import jax.numpy as jnp
    >>> PatchEmbed(8, patch_size=4, rngs=nnx.Rngs(0))(jnp.zeros((2, 16, 12, 3))).shape
    (2, 12, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        patch_size: int = 16,
        stride: int | None = None,
        in_channels: int = 3,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        conv = nnx.Conv(
            in_channels,
            d_model,
            (patch_size, patch_size),
            stride or patch_size,
            padding="VALID",
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=_DRAW,
            rngs=rngs,
        )
        self.proj = with_kinds(conv)
        self.cut = patch_size, stride or patch_size

    def __call__(self, images: Float[Array, "b y x channels"]) -> Float[Array, "b l d"]:
        """Tokens of channels-last images, row by row.

        Raises:
            ValueError: The last rows or columns of the images belong to no patch.
        """
        check_cut("PatchEmbed", "the size of images", images.shape[1:3], *self.cut)
        return rearrange(self.proj(images), "b y x d -> b (y x) d")


class ConvStem(nnx.Module):
    """A patch embedding by small steps, for small images: 3x3 convolutions of stride 2, then a linear map.

    "Early Convolutions Help Transformers See Better" (https://arxiv.org/abs/2106.14881) shows that this trains faster
    and better than one large patch; compact transformers do the same on images of 32 pixels
    (https://arxiv.org/abs/2104.05704). Here LayerNorm and GELU follow each convolution: no batch statistics, hence no
    state.

    Args:
        d_model: The width of a token, and of the last convolution; the one before has half of it, and so on.
        stride: The side of a token in pixels, a power of two of at least 2: as many convolutions as its logarithm.
        in_channels: The channels of the image.
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values (LeCun normal; zero biases).

    Raises:
        ValueError: `stride` is not a power of two of at least 2.

    >>> import jax.numpy as jnp
    >>> ConvStem(8, stride=4, rngs=nnx.Rngs(0))(jnp.zeros((2, 16, 12, 3))).shape
    (2, 12, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        stride: int = 4,
        in_channels: int = 3,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        steps = stride.bit_length() - 1
        if stride < 2 or stride != 2**steps:
            raise errors.bad_argument(
                "ConvStem", "stride", stride, "a power of two of at least 2", 'Or use the plain patches: stem="patch".'
            )
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        widths = [in_channels, *(max(d_model >> i, 1) for i in reversed(range(steps)))]
        self.convs = nnx.data(
            [
                with_kinds(nnx.Conv(before, after, (3, 3), 2, padding=1, kernel_init=_DRAW, **options))
                for before, after in zip(widths[:-1], widths[1:], strict=True)
            ]
        )
        self.norms = nnx.data([LayerNorm(width, **options) for width in widths[1:]])
        self.proj = with_kinds(nnx.Linear(d_model, d_model, kernel_init=_DRAW, **options))

    def __call__(self, images: Float[Array, "b y x channels"]) -> Float[Array, "b l d"]:
        """Tokens of channels-last images, row by row."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.gelu(norm(conv(x)))
        return self.proj(rearrange(x, "b y x d -> b (y x) d"))
