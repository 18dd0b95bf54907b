"""The future in the past: bounded by rounding where transforms run, none at all in the exact ways that have a name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax import ops
from ssmjax.layers import DSS, LRU, S4, S4D, S5, Mamba
from tests.layers import quick

LENGTH, D = 33, 4
u = jax.random.normal(jax.random.key(0), (2, LENGTH, D))


def with_last(value):
    return u.at[:, -1].set(value)


@pytest.mark.parametrize("cls", [S4, S4D, DSS, S5, LRU, Mamba])
def test_the_scan_is_exactly_causal(cls):
    options = {"l_max": LENGTH} if cls in (S4, DSS) else {}
    layer = cls(D, d_state=4, **options, rngs=nnx.Rngs(0))
    definition, parameters = nnx.split(layer)
    mode = {} if cls is Mamba else {"mode": "scan"}
    run = quick.jit(lambda parameters, u: nnx.merge(definition, parameters)(u, **mode))
    for value in (1e8, np.nan):
        np.testing.assert_array_equal(run(parameters, with_last(value))[:, :-1], run(parameters, u)[:, :-1])


@pytest.mark.parametrize("value", [1.0, 1e8])
@pytest.mark.parametrize("origin", [0, 2])
def test_the_transform_is_bounded(value, origin):
    """Each output is off by no more than what the docstring of `fft_conv` says."""
    kernel = jax.random.normal(jax.random.key(1), (LENGTH, D))
    x = with_last(value)
    exact = ops.fft_conv(x.astype(np.float32), kernel, origin=origin, implementation="reference")
    got = ops.fft_conv(x, kernel, origin=origin)
    size = 2 * LENGTH
    bound = 1.2e-7 * np.log2(size) * jnp.linalg.norm(x, axis=1) * abs(kernel).sum(0)[None]
    assert (abs(got - exact) <= bound[:, None]).all()


@pytest.mark.parametrize("value", [1e8, np.nan])
def test_the_reference_is_exactly_causal(value):
    kernel = jax.random.normal(jax.random.key(1), (LENGTH, D))
    run = lambda x: ops.fft_conv(x, kernel, implementation="reference")[:, :-1]  # noqa: E731
    np.testing.assert_array_equal(run(with_last(value)), run(u))
    image, kernels = u.reshape(2, 3, 11, D), [jnp.ones((1, 1, 3, D)), jnp.ones((1, 1, 11, D))]
    run = lambda x: ops.separable_conv(x, kernels, implementation="reference")[:, 0].reshape(2, LENGTH, D)[:, :-1]  # noqa: E731
    np.testing.assert_array_equal(run(with_last(value).reshape(image.shape)), run(image))
