"""Forward-mode derivatives of every layer, model and loss: right by the reference, else right or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmjax
from ssmjax.layers.vision.depthwise import depthwise_conv2d
from ssmjax.training.losses import softmax_cross_entropy
from tests.layers import quick
from tests.models.registry_cases import case, layer_names, model_names
from vlmjax.models.splice import place, splice
from vlmjax.ops.token_merge import soft_top_k

pytestmark = pytest.mark.usefixtures("as_a_user")

SHOWN = ["Mamba2", "qwen2_vl_2b"]
LABELS = jnp.array([[1, 0, -100], [2, 1, 5]])
x = jnp.sin(jnp.arange(18.0)).reshape(2, 3, 3)
FUNCTIONS = {
    "softmax_cross_entropy": lambda x: softmax_cross_entropy(x, LABELS, label_smoothing=0.1),
    "depthwise_conv2d": lambda x: depthwise_conv2d(x[..., None], jnp.arange(9.0).reshape(3, 3, 1)),
    "splice": lambda x: splice(jnp.zeros((1, 5)), x[0, 0], jnp.array([[True, False, True, False, True]])),
    "place": lambda x: place(jnp.zeros((4, 3)), x[0], jnp.array([1, -1, 0, 2])),
    "soft_top_k": lambda x: soft_top_k(x[0], 1.5, 0.5),
}
BOTH_MODES = {"softmax_cross_entropy", "soft_top_k"}


def along(f, x, v):
    """The derivative of a sum of squares along v, in reverse mode, and that in forward mode."""
    loss = lambda x: sum((y.astype(jnp.float32) ** 2).sum() for y in jax.tree.leaves(f(x)))  # noqa: E731
    gradients = jax.grad(loss)(x)
    backward = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(v), strict=True))
    return backward, jax.jvp(loss, (x,), (v,))[1]


def refusal_or_none(call):
    try:
        call()
    except TypeError as error:
        return str(error)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_with_a_backward_pass_of_their_own(name):
    f, v = FUNCTIONS[name], jnp.cos(x)
    with ssmjax.use_implementation("reference"):
        backward, forward = quick.jit(lambda x: along(f, x, v))(x)
        np.testing.assert_allclose(backward, forward, rtol=1e-5)
        gradient, second = jax.jit(lambda x: jax.jvp(jax.grad(lambda x: (f(x) ** 2).sum()), (x,), (v,)))(x)
    by_default = quick.jit(jax.grad(lambda x: (f(x) ** 2).sum()))(x)
    np.testing.assert_allclose(by_default, gradient, rtol=1e-5, atol=1e-6)
    assert np.isfinite(second).all()
    for run in (
        jax.jvp,
        lambda f, x, v: jax.jvp(jax.jit(f), x, v),
        jax.jit(jax.jvp, static_argnums=0),
    ):
        refusal = refusal_or_none(lambda run=run: run(f, (x,), (v,)))
        if name in BOTH_MODES:
            assert refusal is None
        else:
            assert "forward-mode derivatives" in refusal and "implementation='reference'" in refusal


def test_the_hessian_of_a_loss():
    """Of the softmax it is `diag(p) - p p^T`."""
    logits = jnp.array([0.5, -1.0, 2.0])
    p = jax.nn.softmax(logits)
    loss = lambda x: softmax_cross_entropy(x, jnp.array(1))  # noqa: E731
    for hessian in (jax.hessian(loss), jax.hessian(jax.jit(loss)), jax.jit(jax.hessian(loss))):
        np.testing.assert_allclose(hessian(logits), jnp.diag(p) - jnp.outer(p, p), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [*SHOWN, *(pytest.param(n, marks=pytest.mark.slow) for n in [*layer_names(), *model_names()] if n not in SHOWN)],
)
def test_layers_and_models(name):
    it = case(name, 2)
    state, inputs = it.arguments()
    v = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), state)
    refusal = refusal_or_none(lambda: jax.eval_shape(lambda s: jax.jvp(lambda s: it.run(s, inputs), (s,), (v,)), state))
    assert refusal is None or "need implementation='reference'" in refusal
    with ssmjax.use_implementation("reference"):
        backward, forward = quick.jit(lambda s: along(lambda s: it.run(s, inputs), s, v))(state)
    np.testing.assert_allclose(forward, backward, rtol=1e-3)
