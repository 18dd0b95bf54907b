"""Scan orders: permutations of the sequence axis, applied by a gather whose gradient is the inverse gather.

The gradient of a plain gather is a scatter-add, which on a GPU is slower and adds in no fixed order. A permutation
needs neither: its transpose is the gather with the inverse permutation.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.ops import _checks, backend
from ssmjax.ops._numerics.permute import permute
from ssmjax.shapes import Array, Inexact

__all__ = ["Order", "apply_order", "column_major", "from_permutation", "reverse", "row_major", "undo_order"]


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """A scan order: the token met at step t is `forward[t]`, and token i is met at step `inverse[i]`; int32 (l)."""

    forward: np.ndarray
    inverse: np.ndarray

    def __len__(self) -> int:
        return len(self.forward)


def from_permutation(permutation: np.ndarray | Sequence[int]) -> Order:
    """Computes the order that meets token `permutation[t]` at step t.

    Args:
        permutation: (l) int, each of 0 ... l-1 once.

    Raises:
        ValueError: It is not a permutation.

    >>> import ssmjax
    >>> ssmjax.ops.scan_order.from_permutation([2, 0, 1]).inverse.tolist()
    [1, 2, 0]
    """
    try:
        permutation = np.asarray(permutation)
    except (TypeError, ValueError):  # it is traced, or rows differ in length
        remedy = "It decides what is compiled: numbers that are known, static under jax.jit."
        raise errors.bad_shape("from_permutation", "permutation", permutation, "an array of ints", remedy) from None
    if permutation.ndim != 1 or not np.array_equal(np.sort(permutation), np.arange(permutation.size)):
        raise errors.bad_shape("from_permutation", "permutation", permutation, "each of 0 ... l-1 once, of rank 1")
    return Order(permutation.astype(np.int32), np.argsort(permutation).astype(np.int32))


def row_major(y: int, x: int) -> Order:
    """Row after row of a grid of y rows and x columns: the order of the tokens themselves.

    >>> import ssmjax
    >>> ssmjax.ops.scan_order.row_major(2, 3).forward.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return from_permutation(_grid("row_major", y, x).reshape(-1))


def column_major(y: int, x: int) -> Order:
    """Column after column of a grid of y rows and x columns whose tokens are stored by rows.

    >>> import ssmjax
    >>> ssmjax.ops.scan_order.column_major(2, 3).forward.tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return from_permutation(_grid("column_major", y, x).T.reshape(-1))


def reverse(order: Order) -> Order:
    """Computes the same order from its end.

    >>> import ssmjax
    >>> ssmjax.ops.scan_order.reverse(ssmjax.ops.scan_order.row_major(1, 3)).forward.tolist()
    [2, 1, 0]
    """
    return Order(order.forward[::-1].copy(), (len(order) - 1 - order.inverse).astype(np.int32))


def apply_order(x: Inexact[Array, "b l *d"], order: Order) -> Inexact[jax.Array, "b l *d"]:
    """Puts tokens into scan order: `x[:, order.forward]`. Exact and deterministic in both directions.

    Derivatives are in reverse mode only.

    Args:
        x: Tokens, (b l *d).
        order: An order of l tokens.

    Returns:
        (b l *d).

    Raises:
        ValueError: The order is of another length, or x has the wrong rank or dtype.

    >>> import jax.numpy as jnp, ssmjax
    >>> ssmjax.ops.apply_order(jnp.arange(4.0)[None], ssmjax.ops.scan_order.column_major(2, 2)).tolist()
    [[0.0, 2.0, 1.0, 3.0]]
    """
    _check("apply_order", x, order)
    return permute(jnp.asarray(x), order.forward, order.inverse, 1)


def undo_order(x: Inexact[Array, "b l *d"], order: Order) -> Inexact[jax.Array, "b l *d"]:
    """Puts what was computed in scan order back at its tokens: the inverse of `apply_order`, with the same arguments.

    >>> import jax.numpy as jnp, ssmjax
    >>> order = ssmjax.ops.scan_order.column_major(2, 2)
    >>> ssmjax.ops.undo_order(ssmjax.ops.apply_order(jnp.arange(4.0)[None], order), order).tolist()
    [[0.0, 1.0, 2.0, 3.0]]
    """
    _check("undo_order", x, order)
    return permute(jnp.asarray(x), order.inverse, order.forward, 1)


def _grid(where, y, x):
    y, x = (errors.as_int(where, n, v, least=1, remedy=_checks.STATIC) for n, v in (("y", y), ("x", x)))
    return np.arange(y * x, dtype=np.int32).reshape(y, x)


def _check(where, x, order):
    _checks.require_arrays(where, x=x)
    _checks.require_dtype(where, {"x": x}, jnp.inexact, "a floating or complex")
    if not isinstance(order, Order):
        remedy = "Make one: ssmjax.ops.scan_order.from_permutation(order)."
        raise errors.bad_shape(where, "order", order, "an ssmjax.ops.scan_order.Order", remedy)
    if x.ndim < 2:
        raise errors.bad_shape(where, "x", x, "of rank 2 or more, (b l *d)")
    if x.shape[1] != len(order):
        raise errors.bad_shape(
            where, "x", x, f"(b l *d) with l = {len(order)}, the order's length", "A class token is not part of a grid."
        )


def _example(key):
    return (jax.random.normal(key, (2, 6, 3)), column_major(2, 3)), {}


def _expected(x, order):
    del order
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


for _function in (apply_order, undo_order):
    backend.register_op(_function.__name__, _function, implementations=(), example=_example, expected=_expected)
