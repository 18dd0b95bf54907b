"""Mamba's selective scan."""

from ssmjax.ops.selective_scan.api import selective_scan

__all__ = ["selective_scan"]
