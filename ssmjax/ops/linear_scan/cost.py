"""Analytic cost of the linear scan."""

from ssmjax.ops.cost import Cost

__all__ = ["linear_scan_cost"]


def linear_scan_cost(b: int, l: int, f: int, *, itemsize: int = 4) -> Cost:
    """Cost of `h = linear_scan(a, x)` for real numbers: one product and one sum per step.

    Args:
        b: Batch.
        l: Length.
        f: Product of the trailing axes.
        itemsize: Bytes of a number.
    """
    return Cost(flops=2 * b * l * f, transcendentals=0, bytes=itemsize * 3 * b * l * f)
