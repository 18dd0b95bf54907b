"""Mamba-2's scan in its chunked dual form."""

from ssmjax.ops.ssd.api import ssd

__all__ = ["ssd"]
