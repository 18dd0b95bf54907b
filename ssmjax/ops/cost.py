"""The unit in which the ops state what they cost. XLA's own `cost_analysis` counts the body of a loop once, whatever its length."""

import dataclasses

__all__ = ["Cost"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work and traffic of one forward call.

    Attributes:
        flops: Real additions and multiplications.
        transcendentals: Exponentials and the like, not in `flops`.
        bytes: What any implementation must read and write at least: arguments and results, once each.
    """

    flops: int
    transcendentals: int
    bytes: int
