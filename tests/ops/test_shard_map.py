"""Ops inside `jax.shard_map`, in each implementation: rows are split, parameters are not. See `tests.layers`' tests.

One device is enough for the check of what varies. With XLA_FLAGS=--xla_force_host_platform_device_count=2 the rows go
to two.
"""

import jax
import jax.numpy as jnp
import pytest

from ssmjax import ops
from tests.layers.test_shard_map import assert_same_in_shard_map, rows_of

B, L, H, N = 2, 5, 3, 2


def diagonal(shared):
    return jax.lax.complex(-jnp.exp(shared[:, :N]), shared[:, N:])


CALLS = {
    "linear_scan": lambda shared, x: ops.linear_scan(0.5 * shared[:, 0], x, return_state=True),
    "fft_conv": lambda shared, x: ops.fft_conv(x, shared.T, shared[:, 0], origin=1),
    "fft_conv_nd": lambda shared, x: ops.fft_conv_nd(x[:, :, None], shared.T[:, None]),
    "separable_conv": lambda shared, x: ops.separable_conv(x, [jnp.stack([shared.T[None]] * 5)]),  # so many: transforms
    "vandermonde": lambda shared, x: ops.vandermonde(x[:, :N].swapaxes(1, 2), diagonal(shared), L),
    "vandermonde_state": lambda shared, x: ops.vandermonde_state(x, diagonal(shared)),
    "ssd": lambda shared, x: ops.ssd(x[..., None], abs(x), -jnp.exp(shared[:, 0]), *[x[:, :, None, :N]] * 2),
    "selective_scan": lambda shared, x: ops.selective_scan(x, abs(x), -jnp.exp(shared[:, :N]), *[x[..., :N]] * 2),
}


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_ops(name, implementation):
    with ops.use_implementation(implementation):
        assert_same_in_shard_map(CALLS[name], rows_of(H, 2 * N), rows_of(B, L, H))
