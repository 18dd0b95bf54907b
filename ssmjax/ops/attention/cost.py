"""Analytic cost of attention."""

from ssmjax.ops.cost import Cost

__all__ = ["attention_cost"]


def attention_cost(
    b: int, l: int, m: int, h: int, p: int, *, groups: int | None = None, causal: bool = False, itemsize: int = 4
) -> Cost:
    """Cost of `attention(q, k, v)`: two products of size (l m p) a head; the softmax is not in `flops`.

    Args:
        b: Batch.
        l: Queries.
        m: Keys.
        h: Heads of the queries.
        p: Width of a head.
        groups: Heads of the keys and values; None means `h`.
        causal: Whether the queries are the last `l` positions of the keys and see no later key.
        itemsize: Bytes of a number in all of the arrays.
    """
    pairs = l * (m - l) + l * (l + 1) // 2 if causal else l * m
    numbers = 2 * b * l * h * p + 2 * b * m * (groups or h) * p
    return Cost(flops=4 * b * h * p * pairs, transcendentals=b * h * pairs, bytes=itemsize * numbers)
