"""The short causal depthwise convolution of Mamba blocks."""

from ssmjax.ops.causal_conv1d.api import causal_conv1d

__all__ = ["causal_conv1d"]
