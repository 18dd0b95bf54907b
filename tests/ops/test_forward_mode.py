"""Forward-mode derivatives: right where an op has them, else one error that names the implementation that does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmjax
from ssmjax import ops
from ssmjax.layers import S4D, S5
from ssmjax.ops._numerics.permute import permute
from tests.layers import quick

x, taps = jnp.linspace(-1.0, 1.0, 24).reshape(2, 6, 2), jnp.linspace(0.5, 1.0, 6).reshape(3, 2)
OPS = {
    "linear_scan": lambda x, **o: ops.linear_scan(jnp.full(x.shape, 0.5), x, **o),
    "causal_conv1d": lambda x, **o: ops.causal_conv1d(x, taps, activation="silu", **o),
    "fft_conv": lambda x, **o: ops.fft_conv(x, taps, **o),
    "selective_scan": lambda x, **o: ops.selective_scan(x, abs(x), -jnp.ones((2, 1)), x[..., :1], x[..., 1:], **o),
}


def gradient_along(f, x, v):
    """`d/de f(x + e v)`, in reverse mode."""
    y, pull_back = jax.vjp(f, x)
    rows = jax.vmap(lambda unit: (pull_back(unit)[0] * v).sum())(jnp.eye(y.size).reshape(y.size, *y.shape))
    return rows.reshape(y.shape)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_has_forward_mode(op):
    f, v = OPS[op], jnp.cos(x)
    wanted = quick.jit(lambda x: gradient_along(f, x, v))(x)
    _, tangent = quick.jit(lambda x: jax.jvp(lambda x: f(x, implementation="reference"), (x,), (v,)))(x)
    np.testing.assert_allclose(tangent, wanted, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_the_error_names_it(op):
    f = OPS[op]
    loss = lambda x: (f(x) ** 2).sum()  # noqa: E731
    for call in (
        lambda: jax.jvp(f, (x,), (x,)),
        lambda: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
        lambda: jax.jvp(jax.jit(f), (x,), (x,)),
        lambda: jax.linearize(f, x)[1](x),
        lambda: jax.hessian(loss)(x),
        lambda: jax.jit(jax.hessian(loss))(x),
    ):
        with pytest.raises(TypeError, match=f"{op}: forward-mode .* need implementation='reference'"):
            call()


def test_layers_have_it_by_the_reference():
    """With a mask, whose permutations have both modes."""
    from flax import nnx

    mask = jnp.arange(6)[None] < jnp.array([[6], [4]])
    for layer in (S5(2, d_state=2, rngs=nnx.Rngs(0)), S4D(2, d_state=2, rngs=nnx.Rngs(0))):
        f = lambda x, layer=layer: layer(x, mask=mask)  # noqa: E731
        with pytest.raises(TypeError, match="need implementation='reference'"):
            jax.jvp(f, (x,), (x,))
        with ssmjax.use_implementation("reference"):
            y, tangent = quick.jit(lambda x, f=f: jax.jvp(f, (x,), (x,)))(x)  # linear in x
        np.testing.assert_allclose(tangent, y, atol=1e-6)


def test_permutations_have_both_modes_and_no_scatter():
    order = jnp.array([[2, 0, 1, 5, 4, 3], [5, 4, 3, 2, 1, 0]])
    inverse = jnp.argsort(order, axis=1)
    for by in ((order[..., None], inverse[..., None]), (order[0], inverse[0])):
        f = lambda x, by=by: permute(x, *by, 1) ** 2  # noqa: E731
        run = quick.jit(lambda x, v, f=f: (jax.jvp(f, (x,), (v,))[1], gradient_along(f, x, v)))
        np.testing.assert_allclose(*run(x, jnp.cos(x)), atol=1e-6)
        assert "scatter" not in jax.jit(jax.grad(lambda x, f=f: f(x).sum())).lower(x).as_text()
