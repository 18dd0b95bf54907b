"""Pure functions of arrays: the scans and convolutions that the layers are built of."""

from ssmjax.ops import scan_order
from ssmjax.ops.backend import Implementation, registered_ops, report, use_implementation
from ssmjax.ops.causal_conv1d import causal_conv1d
from ssmjax.ops.linear_scan import linear_scan
from ssmjax.ops.scan_order import apply_order, undo_order
from ssmjax.ops.selective_scan import selective_scan

__all__ = [
    "Implementation",
    "apply_order",
    "causal_conv1d",
    "linear_scan",
    "registered_ops",
    "report",
    "scan_order",
    "selective_scan",
    "undo_order",
    "use_implementation",
]
