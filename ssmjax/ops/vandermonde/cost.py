"""Analytic cost of the kernel of a diagonal state space, in the form that `"xla"` runs."""

import math

from ssmjax.ops.cost import Cost

__all__ = ["vandermonde_cost"]


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
