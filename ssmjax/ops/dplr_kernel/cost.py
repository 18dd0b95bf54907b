"""Analytic cost of the kernel of S4, in the form that `"xla"` runs."""

import math

from ssmjax.ops.cost import Cost

__all__ = ["dplr_kernel_cost"]


def dplr_kernel_cost(h: int, l: int, n: int, *, r: int = 1, c: int = 1) -> Cost:
    """Cost of `dplr_kernel(A, P, B, C, dt, l)`: Cauchy products, a small system, and an inverse transform.

    Args:
        h: Features.
        l: Length.
        n: Modes.
        r: Rank.
        c: Channels, the leading axis of C.
    """
    products = 8 * (1 + r) * (c + r)  # two real weights each, with a complex response
    response = 32  # and which mode is nearest to a frequency
    kept = 2 * (5 + 2 * (1 + r + c))  # the entries of that mode, by a product
    system = 8 * (r * r * (r - 1) // 2 + 3 * r * r + 8 * r + 16 + c * (r + 2))
    transform = round(2.5 * l * math.log2(max(2, l)))
    return Cost(
        flops=h * (l // 2 + 1) * (n * (products + response + kept) + system) + c * h * transform,
        transcendentals=0,
        bytes=4 * c * h * (2 * n + l) + 8 * h * n * (2 + r),
    )
