"""The linear recurrence."""

from ssmjax.ops.linear_scan.api import linear_scan

__all__ = ["linear_scan"]
