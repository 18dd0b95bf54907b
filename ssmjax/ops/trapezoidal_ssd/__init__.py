"""Mamba-3's scan."""

from ssmjax.ops.trapezoidal_ssd.api import TrapezoidalState, trapezoidal_ssd

__all__ = ["TrapezoidalState", "trapezoidal_ssd"]
