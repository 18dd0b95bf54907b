"""Orders in which image tokens are scanned."""

from ssmjax.ops.scan_order.api import Order, apply_order, column_major, from_permutation, reverse, row_major, undo_order

__all__ = ["Order", "apply_order", "column_major", "from_permutation", "reverse", "row_major", "undo_order"]
