"""float16: computed in float32, rounded once; what is too large for it becomes its largest number."""

import chex
import jax
import jax.numpy as jnp
import pytest

from ssmjax import ops

LARGEST = 65504.0


def cases(key):
    keys = jax.random.split(key, 8)
    x, z = (100 * jax.random.normal(k, (2, 16, 8)) for k in keys[:2])
    dt = 10 * jax.random.normal(keys[2], (2, 16, 8))
    A = -jnp.exp(jax.random.normal(keys[3], (8, 4)))
    B, C = (30 * jax.random.normal(k, (2, 16, 4)) for k in keys[4:6])
    kernel, taps = 100 * jax.random.normal(keys[6], (16, 8)), 100 * jax.random.normal(keys[7], (4, 8))
    heads = {name: v.reshape(2, 16, 4, 2) for name, v in (("x", x), ("z", z))}
    return {
        "selective_scan": lambda c: ops.selective_scan(c(x), c(dt), A, c(B), c(C), z=c(z), dt_softplus=True),
        "linear_scan": lambda c: ops.linear_scan(c(jnp.full_like(x, 0.99)), c(100 * x)),
        "ssd": lambda c: ops.ssd(
            c(heads["x"]),
            c(dt[..., :4]),
            A[:4, 0],
            c(B[:, :, None]),
            c(C[:, :, None]),
            z=c(heads["z"]),
            dt_softplus=True,
            chunk=8,
        ),
        "fft_conv": lambda c: ops.fft_conv(c(x), c(kernel)),
        "causal_conv1d": lambda c: ops.causal_conv1d(c(100 * x), c(taps)),
    }


@pytest.mark.parametrize("name", list(cases(jax.random.key(0))))
def test_large_inputs_stay_finite_and_are_rounded_once(key, name):
    run = cases(key)[name]
    got = run(lambda v: v.astype(jnp.float16))
    want = run(lambda v: v.astype(jnp.float16).astype(jnp.float32))
    assert got.dtype == jnp.float16
    assert int((jnp.abs(want) > LARGEST).sum()) > 0, "a range that float16 does not hold"
    chex.assert_tree_all_finite(got)
    # One rounding, of half a unit in the last of eleven bits; the two float32 results may differ in their last bits.
    error = jnp.abs(got.astype(jnp.float32) - jnp.clip(want, -LARGEST, LARGEST))
    assert float((error / jnp.maximum(jnp.abs(want), 1.0)).max()) < 1.01 * 2.0**-11


def test_states_and_other_dtypes_are_as_they_were(key):
    x = jax.random.normal(key, (2, 5, 3))
    a = jnp.full_like(x, 0.5)
    h, state = ops.linear_scan(a.astype(jnp.float16), x.astype(jnp.float16), return_state=True)
    assert (h.dtype, state.dtype) == (jnp.float16, jnp.float32)
    assert ops.linear_scan(a, x.astype(jnp.float16)).dtype == jnp.float32
    assert ops.linear_scan(x=x.astype(jnp.float16), a=a.astype(jnp.float16)).dtype == jnp.float16
    assert ops.linear_scan(a.astype(jnp.bfloat16), x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_gradients_have_the_dtypes_of_the_inputs(key):
    x = jax.random.normal(key, (2, 5, 3)).astype(jnp.float16)
    gradient = jax.grad(lambda x: ops.linear_scan(jnp.full_like(x, 0.5), x).sum())(x)
    assert gradient.dtype == jnp.float16
    chex.assert_tree_all_finite(gradient)


def test_too_many_arguments_are_pythons_own_error(as_a_user):
    x = jnp.ones((2, 5, 3), jnp.float16)
    with pytest.raises(TypeError, match="positional"):
        ops.linear_scan(x, x, None, True)
