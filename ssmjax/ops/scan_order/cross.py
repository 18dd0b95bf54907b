"""Several scan orders of the same tokens at once: what VMamba calls cross-scan and cross-merge."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops import backend
from ssmjax.ops.scan_order.api import Order, apply_order, column_major, reverse, row_major, undo_order
from ssmjax.shapes import Array, Inexact

__all__ = ["cross_merge", "cross_orders", "cross_scan"]


def cross_orders(y: int, x: int) -> tuple[Order, Order, Order, Order]:
    """The four orders of VMamba: rows, columns, and both from their ends (https://arxiv.org/abs/2401.10166, figure 3).

    Args:
        y: The rows of the grid.
        x: Its columns.

    >>> import ssmjax
    >>> [order.forward.tolist() for order in ssmjax.ops.scan_order.cross_orders(2, 2)]
    [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [3, 1, 2, 0]]
    """
    rows, columns = row_major(y, x), column_major(y, x)
    return rows, columns, reverse(rows), reverse(columns)


def cross_scan(
    x: Inexact[Array, "b l *d"], orders: Sequence[Order], *, each: bool = False
) -> Inexact[jax.Array, "b l k *rest"]:
    """Puts tokens into each of k scan orders: `y[:, t, i] = x[:, orders[i].forward[t]]`.

    The gradient is `cross_merge` of the cotangent: gathers by the inverse orders and a sum, no scatter. Derivatives are
    in reverse mode only.

    Args:
        x: Tokens, (b l *d); with `each` (b l k *d), the i-th of which is put into the i-th order.
        orders: k orders of l tokens.
        each: Whether every order has tokens of its own.

    Returns:
        (b l k *d).

    Raises:
        ValueError: There is no order, one is of another length, or x has the wrong shape.

    >>> import jax.numpy as jnp, ssmjax
    >>> orders = ssmjax.ops.scan_order.cross_orders(2, 2)
    >>> ssmjax.ops.cross_scan(jnp.arange(4.0)[None], orders)[0, :, 1].tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    _check("cross_scan", x, orders, each)
    parts = [x[:, :, i] if each else x for i in range(len(orders))]
    return jnp.stack([_in_order(part, order, apply_order) for part, order in zip(parts, orders, strict=True)], axis=2)


def cross_merge(y: Inexact[Array, "b l k *d"], orders: Sequence[Order]) -> Inexact[jax.Array, "b l *d"]:
    """Puts what was computed in each of k orders back at its tokens, and sums over the orders.

    Args:
        y: (b l k *d), in the layout of `cross_scan`.
        orders: The k orders.

    Returns:
        (b l *d).

    Raises:
        ValueError: There is no order, one is of another length, or y has the wrong shape.

    >>> import jax.numpy as jnp, ssmjax
    >>> orders = ssmjax.ops.scan_order.cross_orders(2, 2)
    >>> ssmjax.ops.cross_merge(ssmjax.ops.cross_scan(jnp.arange(4.0)[None], orders), orders).tolist()
    [[0.0, 4.0, 8.0, 12.0]]
    """
    _check("cross_merge", y, orders, True)
    parts = [_in_order(y[:, :, i], order, undo_order) for i, order in enumerate(orders)]
    return sum(parts[1:], start=parts[0])


def _in_order(x, order, permute):
    """The tokens in an order; rows, in which they are stored, cost no gather."""
    stored = np.array_equal(order.forward, np.arange(len(order)))
    return x if stored and x.shape[1] == len(order) else permute(x, order)


def _check(where, x, orders, each):
    if not orders:
        raise errors.bad_argument(where, "orders", orders, "at least one order", "See scan_order.cross_orders(y, x).")
    if each and (getattr(x, "ndim", 0) < 3 or x.shape[2] != len(orders)):
        raise errors.bad_shape(where, "y" if where == "cross_merge" else "x", x, f"(b l k *d) with k = {len(orders)}")


def _scan_example(key):
    return (jax.random.normal(key, (2, 6, 3)), cross_orders(2, 3)), {}


def _scan_expected(x, orders):
    return jax.ShapeDtypeStruct((*x.shape[:2], len(orders), *x.shape[2:]), x.dtype)


def _merge_example(key):
    return (jax.random.normal(key, (2, 6, 4, 3)), cross_orders(2, 3)), {}


def _merge_expected(y, orders):
    del orders
    return jax.ShapeDtypeStruct((*y.shape[:2], *y.shape[3:]), y.dtype)


backend.register_op("cross_scan", cross_scan, implementations=(), example=_scan_example, expected=_scan_expected)
backend.register_op("cross_merge", cross_merge, implementations=(), example=_merge_example, expected=_merge_expected)
