"""Analytic cost of the separable convolution in its dense form."""

import math

from ssmjax.ops.cost import Cost

__all__ = ["separable_conv_cost"]


def separable_conv_cost(b: int, shape: tuple[int, ...], d: int, *, r: int = 1, c: int = 1, itemsize: int = 4) -> Cost:
    """Cost of `separable_conv(x, kernels)`: for every axis a product with a matrix (l l), for each term and channel.

    Args:
        b: Batch.
        shape: The lengths of the axes.
        d: Features.
        r: Terms.
        c: Channels.
        itemsize: Bytes of a number in x and y; the kernels are float32.
    """
    size = b * math.prod(shape) * d
    return Cost(
        flops=2 * r * c * size * sum(shape) + (r - 1) * c * size,
        transcendentals=0,
        bytes=itemsize * size * (1 + c) + 4 * 2 * r * c * d * sum(shape),
    )
