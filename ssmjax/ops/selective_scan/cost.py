"""Analytic cost of the selective scan."""

from ssmjax.ops.cost import Cost

__all__ = ["selective_scan_cost"]


def selective_scan_cost(b: int, l: int, e: int, n: int, *, g: int = 1, itemsize: int = 4) -> Cost:
    """Cost of `y = selective_scan(x, dt, A, B, C)` with a real A and B and C per step.

    Per state and step: `dt A`, its exponential, `a h`, `u B`, their sum, `C h` and an addition of the sum over n.

    Args:
        b: Batch.
        l: Length.
        e: Channels.
        n: State size.
        g: Groups of B and C.
        itemsize: Bytes of a number in x, dt, B, C and y; A is float32.
    """
    steps = b * l * e
    return Cost(
        flops=steps * (6 * n - 1 + 1),  # the sum takes n - 1 additions, and u = dt x one product
        transcendentals=steps * n,
        bytes=itemsize * (3 * steps + 2 * b * l * g * n) + 4 * e * n,
    )
