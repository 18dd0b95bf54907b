"""The convolution kernel of DSS, normalized over the length."""

from ssmjax.ops.softmax_kernel.api import softmax_kernel

__all__ = ["softmax_kernel"]
