"""Convolutions over several axes with sums of products of kernels along each."""

from ssmjax.ops.separable_conv.api import separable_conv

__all__ = ["separable_conv"]
