"""The unit in which the ops state what they cost: XLA's `cost_analysis` counts a loop's body once, however long."""

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
