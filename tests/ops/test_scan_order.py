"""Scan orders: permutations, their inverses, and the gather's gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops import scan_order

ORDERS = {
    "rows": scan_order.row_major(3, 4),
    "columns": scan_order.column_major(3, 4),
    "columns_reversed": scan_order.reverse(scan_order.column_major(3, 4)),
    "any": scan_order.from_permutation(np.random.default_rng(0).permutation(12)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_undo_is_the_inverse_and_the_gradient(name, key):
    order = ORDERS[name]
    x = jax.random.normal(key, (2, 12, 3))
    ordered = ops.apply_order(x, order)
    np.testing.assert_array_equal(ordered, np.asarray(x)[:, order.forward])
    np.testing.assert_array_equal(ops.undo_order(ordered, order), x)
    _, vjp = jax.vjp(lambda x: ops.apply_order(x, order), x)
    np.testing.assert_array_equal(vjp(ordered)[0], x)  # the transpose of a permutation is its inverse


def test_grid_orders():
    grid = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(ORDERS["rows"].forward, grid.ravel())
    np.testing.assert_array_equal(ORDERS["columns"].forward, grid.T.ravel())
    np.testing.assert_array_equal(ORDERS["columns_reversed"].forward, grid.T.ravel()[::-1])
    assert all(order.forward.dtype == order.inverse.dtype == np.int32 for order in ORDERS.values())


def test_no_scatter_in_the_gradient(key):
    x = jax.random.normal(key, (2, 12))
    program = jax.jit(jax.grad(lambda x: (ops.apply_order(x, ORDERS["columns"]) ** 2).sum())).lower(x).as_text()
    assert "gather" in program and "scatter" not in program


def test_vmap_and_dtypes(key):
    x = jax.random.normal(key, (3, 2, 12, 2))
    both = jax.vmap(lambda x: ops.apply_order(x, ORDERS["columns"]))(x)
    np.testing.assert_array_equal(both[1], ops.apply_order(x[1], ORDERS["columns"]))
    chex.assert_type(ops.apply_order(x[0].astype(jnp.bfloat16), ORDERS["any"]), jnp.bfloat16)


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    with pytest.raises(ValueError, match="l = 12, the order's length.*class token"):
        ops.apply_order(jnp.ones((2, 13, 3)), ORDERS["rows"])
    with pytest.raises(ValueError, match="rank 2 or more"):
        ops.apply_order(jnp.ones(12), ORDERS["rows"])
    with pytest.raises(ValueError, match="each of 0 ... l-1 once"):
        scan_order.from_permutation([0, 0, 1])
    with pytest.raises(ValueError, match="y must be a positive int, got -3"):
        scan_order.row_major(-3, 4)
    with pytest.raises(ValueError, match="x must be a positive int, got 2.0"):
        scan_order.column_major(4, 2.0)
    with pytest.raises(ValueError, match="permutation must be an array of ints, got .*static under jax.jit"):
        jax.eval_shape(
            lambda order: ops.apply_order(jnp.ones((1, 3)), scan_order.from_permutation(order)), jnp.arange(3)
        )
    with pytest.raises(ValueError, match="order must be an ssmjax.ops.scan_order.Order, got .*from_permutation"):
        ops.apply_order(jnp.ones((1, 3)), np.arange(3))
    with pytest.raises(ValueError, match="x must be an array, got a list"):
        ops.apply_order([[1.0]], scan_order.row_major(1, 1))
