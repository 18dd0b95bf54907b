"""Convolution kernels of state spaces, from Vandermonde and Cauchy products."""

from ssmjax.ops.kernels_s4.api import dplr_kernel, softmax_kernel, vandermonde, vandermonde_state
from ssmjax.ops.kernels_s4.discretize import discretize
from ssmjax.ops.kernels_s4.matrices import dplr_matrices
from ssmjax.ops.kernels_s4.power import diagonal_power

__all__ = [
    "diagonal_power",
    "discretize",
    "dplr_kernel",
    "dplr_matrices",
    "softmax_kernel",
    "vandermonde",
    "vandermonde_state",
]
