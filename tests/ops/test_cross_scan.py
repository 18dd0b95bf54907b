"""Cross-scan and cross-merge: definition, gradients without scatter, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops import scan_order

ORDERS = scan_order.cross_orders(3, 4)


def test_definition_and_gradients(key):
    x = jax.random.normal(key, (2, 12, 3))
    scanned, pull = jax.vjp(lambda x: ops.cross_scan(x, ORDERS), x)
    expected = np.stack([np.asarray(x)[:, order.forward] for order in ORDERS], axis=2)
    np.testing.assert_array_equal(scanned, expected)
    np.testing.assert_allclose(ops.cross_merge(scanned, ORDERS), 4 * x, rtol=1e-6)
    np.testing.assert_allclose(pull(scanned)[0], ops.cross_merge(scanned, ORDERS), rtol=1e-6)
    _, pull = jax.vjp(lambda y: ops.cross_merge(y, ORDERS), scanned)
    np.testing.assert_array_equal(pull(x)[0], scanned)


def test_each_order_may_have_tokens_of_its_own(key):
    x = jax.random.normal(key, (2, 12, 4, 3))
    scanned = ops.cross_scan(x, ORDERS, each=True)
    for i, order in enumerate(ORDERS):
        np.testing.assert_array_equal(scanned[:, :, i], ops.apply_order(x[:, :, i], order))


def test_no_scatter_in_the_gradient(key):
    x = jax.random.normal(key, (2, 12))

    def loss(x):
        return (ops.cross_merge(ops.cross_scan(x, ORDERS) ** 2, ORDERS) ** 2).sum()

    program = jax.jit(jax.grad(loss)).lower(x).as_text()
    assert "gather" in program and "scatter" not in program


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    with pytest.raises(ValueError, match=r"orders must be at least one order"):
        ops.cross_scan(jnp.ones((1, 12, 2)), ())
    with pytest.raises(ValueError, match=r"y must be \(b l k \*d\) with k = 4"):
        ops.cross_merge(jnp.ones((1, 12, 3, 2)), ORDERS)
    with pytest.raises(ValueError, match=r"l = 12, the order's length"):
        ops.cross_scan(jnp.ones((1, 13, 2)), ORDERS)
