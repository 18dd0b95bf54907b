"""Analytic costs of the kernels, in the forms that `"xla"` runs."""

import math

from ssmjax.ops.cost import Cost

__all__ = ["dplr_kernel_cost", "vandermonde_cost"]


def vandermonde_cost(h: int, l: int, n: int, *, c: int = 1) -> Cost:
    """Cost of `vandermonde(C, A, l)`: a matrix product of inner size 2n, and tables of about 2 sqrt(c l) rows.

    Args:
        h: Features.
        l: Length.
        n: Modes.
        c: Channels, the leading axis of C.
    """
    tables = 6 * h * n * 2 * math.isqrt(c * l)
    return Cost(
        flops=4 * c * h * l * n + tables,
        transcendentals=3 * h * n * l.bit_length(),
        bytes=4 * c * h * (2 * n + l) + 8 * h * n,
    )


def dplr_kernel_cost(h: int, l: int, n: int, *, r: int = 1, c: int = 1) -> Cost:
    """Cost of `dplr_kernel(A, P, B, C, dt, l)`: Cauchy products, a system of r + 2 unknowns, and an inverse transform.

    Args:
        h: Features.
        l: Length.
        n: Modes.
        r: Rank.
        c: Channels, the leading axis of C.
    """
    products = 8 * (1 + r) * (c + r)  # two real weights each, with a complex response
    response = 20
    s = r + 2
    system = 8 * (s * s * (s - 1) // 2 + s * s + c * s)
    transform = round(2.5 * l * math.log2(max(2, l)))
    return Cost(
        flops=h * (l // 2 + 1) * (n * (products + response) + system) + c * h * transform,
        transcendentals=0,
        bytes=4 * c * h * (2 * n + l) + 8 * h * n * (2 + r),
    )
