"""Orders in which image tokens are scanned."""

from ssmjax.ops.scan_order.api import Order, apply_order, column_major, from_permutation, reverse, row_major, undo_order
from ssmjax.ops.scan_order.cross import cross_merge, cross_orders, cross_scan

__all__ = [
    "Order",
    "apply_order",
    "column_major",
    "cross_merge",
    "cross_orders",
    "cross_scan",
    "from_permutation",
    "reverse",
    "row_major",
    "undo_order",
]
