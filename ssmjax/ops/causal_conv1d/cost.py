"""Analytic cost of the causal convolution."""

from ssmjax.ops.cost import Cost

__all__ = ["causal_conv1d_cost"]


def causal_conv1d_cost(b: int, l: int, e: int, k: int, *, itemsize: int = 4) -> Cost:
    """Cost of `y = causal_conv1d(x, weight, bias)` without activation: k products and k sums per output.

    Args:
        b: Batch.
        l: Length.
        e: Channels.
        k: Taps.
        itemsize: Bytes of a number in x and y; weight and bias are float32.
    """
    return Cost(flops=2 * k * b * l * e, transcendentals=0, bytes=itemsize * 2 * b * l * e + 4 * (k + 1) * e)
