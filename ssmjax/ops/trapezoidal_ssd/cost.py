"""Analytic cost of Mamba-3's scan."""

from ssmjax.ops.cost import Cost
from ssmjax.ops.ssd.cost import ssd_cost

__all__ = ["trapezoidal_ssd_cost"]


def trapezoidal_ssd_cost(
    b: int, l: int, h: int, p: int, n: int, *, r: int = 1, chunk: int = 64, itemsize: int = 4
) -> Cost:
    """Cost of the matrix products of `y = trapezoidal_ssd(x, dt, log_a, blend, B, C)`.

    It is that of `ssd` over r l steps with B and C of each head, and the correction at each step.

    Args:
        b: Batch.
        l: Length, a multiple of the chunk.
        h: Heads.
        p: The width of a head.
        n: State size.
        r: Rank.
        chunk: The steps of a chunk.
        itemsize: Bytes of a number in x, B, C and y; the others are float32.
    """
    core = ssd_cost(b, r * l, h, p, n, g=h, chunk=r * min(chunk, l), itemsize=itemsize)
    correction = 2 * b * l * h * r * r * (n + p)
    return Cost(
        flops=core.flops + correction,
        transcendentals=b * l * h * (min(chunk, l) + 2),
        bytes=itemsize * b * l * r * h * (2 * p + 2 * n) + 4 * 3 * b * l * h,
    )
