"""Convolution kernels of state spaces, from Vandermonde and Cauchy products."""

from ssmjax.ops.kernels_s4.api import dplr_kernel, softmax_kernel, vandermonde, vandermonde_state
from ssmjax.ops.kernels_s4.discretize import discretize
from ssmjax.ops.kernels_s4.matrices import dplr_matrices

__all__ = ["discretize", "dplr_kernel", "dplr_matrices", "softmax_kernel", "vandermonde", "vandermonde_state"]
