"""The rotary table against complex arithmetic."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.layers import apply_rope, axial_rope_table


def test_turns_pairs_as_complex_numbers(key):
    x = jax.random.normal(key, (2, 6, 8))
    angles = axial_rope_table(2, 3, 8)
    pairs = np.asarray(x[..., ::2]) + 1j * np.asarray(x[..., 1::2])
    turned = pairs * np.exp(1j * angles)
    y = apply_rope(x, angles)
    chex.assert_trees_all_close(
        np.asarray(y[..., ::2]) + 1j * np.asarray(y[..., 1::2]), turned.astype(np.complex64), atol=1e-6
    )


def test_angles_by_row_and_column():
    angles = axial_rope_table(2, 3, 8, base=100.0).reshape(2, 3, 4)
    np.testing.assert_allclose(angles[1, 2], [1, 0.1, 2, 0.2])
    np.testing.assert_allclose(angles[0, 2], [0, 0, 2, 0.2])


def test_positions_are_scaled_to_the_pretrained_grid():
    np.testing.assert_allclose(axial_rope_table(8, 8, 8, pretrained_side=4), axial_rope_table(8, 8, 8) / 2)


def test_inner_products_depend_on_distance_only(key):
    q, k = jax.random.normal(key, (2, 1, 1, 8))
    angles = axial_rope_table(4, 4, 8)

    def product(i, j):
        return (apply_rope(q, angles[i : i + 1]) * apply_rope(k, angles[j : j + 1])).sum()

    chex.assert_trees_all_close(product(0, 5), product(10, 15), atol=1e-5)


def test_low_precision_is_turned_in_float32(key):
    x = jax.random.normal(key, (1, 4, 8)).astype(jnp.bfloat16)
    y = apply_rope(x, axial_rope_table(2, 2, 8))
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_equal(y, apply_rope(x.astype(jnp.float32), axial_rope_table(2, 2, 8)).astype(jnp.bfloat16))


def test_width_must_fit():
    with pytest.raises(ValueError, match="d_model must be a multiple of 4 .*got 6"):
        axial_rope_table(2, 2, 6)
