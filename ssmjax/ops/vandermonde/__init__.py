"""The convolution kernel of a diagonal state space, the state after a sequence, and what is left of one."""

from ssmjax.ops.vandermonde.api import vandermonde, vandermonde_state
from ssmjax.ops.vandermonde.power import diagonal_power

__all__ = ["diagonal_power", "vandermonde", "vandermonde_state"]
