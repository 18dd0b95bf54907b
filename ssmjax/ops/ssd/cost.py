"""Analytic cost of the state space dual scan in chunks."""

from ssmjax.ops.cost import Cost

__all__ = ["ssd_cost"]


def ssd_cost(
    b: int, l: int, h: int, p: int, n: int, *, g: int = 1, chunk: int = 256, itemsize: int = 4, mask: bool = True
) -> Cost:
    """Cost of the matrix products of `y = ssd(x, dt, A, B, C, chunk=chunk)`, the elementwise work left out.

    In a chunk of q steps: `C B^T` (2 q n a step and group), its product with x (2 q p a step and head), and the state
    read and written (2 p n each). A causal mask halves neither of the first two in this form.

    Args:
        b: Batch.
        l: Length, a multiple of the chunk.
        h: Heads.
        p: The width of a head.
        n: State size.
        g: Groups of B and C.
        chunk: The steps of a chunk, `q`.
        itemsize: Bytes of a number in x, B, C and y; dt and A are float32.
        mask: Whether exponentials of masked places count, as they are computed.
    """
    q = min(chunk, l)
    pairs = q if mask else (q + 1) / 2
    return Cost(
        flops=2 * b * l * (g * q * n + h * q * p + 2 * h * p * n),
        transcendentals=int(b * l * h * (pairs + 2)),
        bytes=itemsize * b * l * (2 * h * p + 2 * g * n) + 4 * b * l * h + 4 * h,
    )
