"""Analytic cost of the convolution by Fourier transforms."""

import math

from ssmjax.ops.cost import Cost
from ssmjax.ops.fft_conv.xla import fast_size

__all__ = ["fft_conv_cost"]


def fft_conv_cost(b: int, l: int, d: int, k: int, *, c: int = 1, itemsize: int = 4) -> Cost:
    """Cost of `y = fft_conv(x, kernel)`: real transforms of 2.5 N log2 N operations each, and a product of spectra.

    Args:
        b: Batch.
        l: Length.
        d: Features.
        k: Taps.
        c: Channels, the leading axis of the kernel.
        itemsize: Bytes of a number in x and y; the kernel is float32.
    """
    size = fast_size(l + min(k, l) - 1)
    transform = round(2.5 * size * math.log2(max(2, size)))
    transforms = b + c + b * c
    return Cost(
        flops=d * (transforms * transform + 6 * b * c * (size // 2 + 1)),
        transcendentals=0,
        bytes=itemsize * b * l * d * (1 + c) + 4 * c * k * d,
    )
