"""Long convolutions by Fourier transforms."""

from ssmjax.ops.fft_conv.api import fft_conv, fft_conv_nd
from ssmjax.ops.fft_conv.kernels import separable_kernel, two_sided_kernel

__all__ = ["fft_conv", "fft_conv_nd", "separable_kernel", "two_sided_kernel"]
