"""The convolution kernel of S4, diagonal plus low rank, and its dense matrices."""

from ssmjax.ops.dplr_kernel.api import dplr_kernel
from ssmjax.ops.dplr_kernel.matrices import dplr_matrices

__all__ = ["dplr_kernel", "dplr_matrices"]
