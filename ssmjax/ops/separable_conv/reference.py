"""The definition of the separable convolution."""

from ssmjax.ops.fft_conv.kernels import separable_kernel
from ssmjax.ops.fft_conv.reference import fft_conv_reference

__all__ = ["separable_conv_reference"]


def separable_conv_reference(x, kernels, origin):
    """(b c *s d): the kernel over all axes is written out, and `x` (b *s d) convolved with it.

    Args:
        x: (b *s d), float32 or float64.
        kernels: One (r c k d) for each axis.
        origin: For each axis the index into the kernel of its tap at offset zero.
    """
    return fft_conv_reference(x, separable_kernel(kernels), origin)
