"""The linear scan against float64 loops, its gradients against autodiff of the reference."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.linear_scan import xla
from tests.layers import quick
from tests.ops import oracle


def problem(l, *, trailing=(3, 2), complex_a=False, complex_x=False, seed=0):
    rng = np.random.default_rng(seed)

    def real(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    a = 0.5 * real(2, l, *trailing)
    x, h0 = real(2, l, *trailing), real(2, *trailing)
    if complex_a:
        a = (a + 0.5j * real(*a.shape)).astype(np.complex64)
    if complex_x:
        x, h0 = (x + 1j * real(*x.shape)).astype(np.complex64), (h0 + 1j * real(*h0.shape)).astype(np.complex64)
    return a, x, h0


def outputs_and_grads(run, args):
    def loss(args):
        h, state = run(*args)
        parts = [v for out in (h, state) for v in ((out.real, out.imag) if jnp.iscomplexobj(out) else (out,))]
        return sum(jnp.sin((i + 1) * v).sum() for i, v in enumerate(parts)), (h, state)

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=oracle.QUICK_COMPILE)(args)
    return outputs, grads


@pytest.mark.parametrize(("l", "kind"), [(1, "real"), (2, "mixed"), (63, "complex"), (64, "real"), (165, "mixed")])
def test_values_and_gradients(l, kind):
    args = problem(l, complex_a=kind == "complex", complex_x=kind != "real")
    reverse = l % 2 == 0
    run = functools.partial(ops.linear_scan, reverse=reverse, return_state=True)
    outputs, grads = outputs_and_grads(run, args)
    chex.assert_trees_all_close(
        outputs,
        tuple(map(np.complex64 if kind != "real" else np.float32, oracle.linear_scan(*args, reverse))),
        atol=1e-5,
    )
    wanted = outputs_and_grads(functools.partial(run, implementation="reference"), args)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, args)
    chex.assert_trees_all_close((outputs, grads), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("associative", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["real", "mixed", "complex"])
def test_a_fixed_decay_is_one_at_every_step(kind, reverse, associative, monkeypatch):
    a, x, h0 = problem(21, complex_a=kind == "complex", complex_x=kind != "real")
    a = a[0, 0]
    if associative:
        monkeypatch.setattr(xla, "_sequential", xla._associative)
    run = functools.partial(ops.linear_scan, reverse=reverse, return_state=True)
    got = outputs_and_grads(run, (a, x, h0))
    chex.assert_trees_all_equal_shapes_and_dtypes(got[1], (a, x, h0))
    wanted = outputs_and_grads(functools.partial(run, implementation="reference"), (a, x, h0))
    chex.assert_trees_all_close(got, wanted, rtol=1e-5, atol=2e-5)
    repeated = outputs_and_grads(run, (np.broadcast_to(a, x.shape), x, h0))
    chex.assert_trees_all_close(got[0], repeated[0], rtol=1e-5, atol=2e-5)
    chex.assert_trees_all_close(got[1][0], repeated[1][0].sum((0, 1)), rtol=1e-4, atol=2e-5)


def test_a_fixed_decay_of_no_trailing_axis_and_without_steps():
    h = ops.linear_scan(jnp.float32(0.5), jnp.ones((1, 3)))
    np.testing.assert_allclose(h, [[1.0, 1.5, 1.75]])
    h, state = ops.linear_scan(jnp.ones(3), jnp.ones((2, 0, 3)), jnp.ones((2, 3)), return_state=True)
    chex.assert_shape(h, (2, 0, 3))
    np.testing.assert_array_equal(state, np.ones((2, 3)))


@pytest.mark.parametrize("complex_a", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_associative_form(complex_a, reverse, monkeypatch):
    """What GPUs and TPUs run, here on a CPU."""
    args = problem(37, complex_a=complex_a, complex_x=complex_a)
    wanted = outputs_and_grads(functools.partial(ops.linear_scan, reverse=reverse, return_state=True), args)
    monkeypatch.setattr(xla, "_sequential", xla._associative)
    got = outputs_and_grads(functools.partial(ops.linear_scan, reverse=reverse, return_state=True), args)
    chex.assert_trees_all_close(got, wanted, rtol=1e-5, atol=2e-5)


def test_no_trailing_axes_empty_and_dtypes():
    chex.assert_trees_all_close(ops.linear_scan(jnp.ones((1, 3)), jnp.ones((1, 3))), jnp.array([[1.0, 2.0, 3.0]]))
    h, state = ops.linear_scan(jnp.ones((2, 0, 3)), jnp.ones((2, 0, 3)), jnp.ones((2, 3)), return_state=True)
    chex.assert_shape(h, (2, 0, 3))
    np.testing.assert_array_equal(state, np.ones((2, 3)))
    h, state = ops.linear_scan(jnp.ones((1, 3), jnp.bfloat16), jnp.ones((1, 3), jnp.bfloat16), return_state=True)
    assert h.dtype == jnp.bfloat16 and state.dtype == jnp.float32


def test_split_equals_whole_and_reverse_is_flip():
    a, x, h0 = problem(7)
    h, state = ops.linear_scan(a, x, h0, return_state=True)
    first, middle = ops.linear_scan(a[:, :3], x[:, :3], h0, return_state=True)
    second, end = ops.linear_scan(a[:, 3:], x[:, 3:], middle, return_state=True)
    chex.assert_trees_all_close((jnp.concatenate([first, second], axis=1), end), (h, state), rtol=1e-6)
    flipped = ops.linear_scan(a[:, ::-1], x[:, ::-1], h0)[:, ::-1]
    chex.assert_trees_all_close(ops.linear_scan(a, x, h0, reverse=True), flipped, rtol=1e-6)


def test_vmap():
    a, x, h0 = problem(4)
    stacked = tuple(jnp.stack([v, 0.5 * v]) for v in (a, x, h0))
    grad = jax.grad(lambda args: (ops.linear_scan(*args) ** 2).sum())
    alone = quick.jit(grad)
    wanted = jax.tree.map(lambda *v: jnp.stack(v), *(alone(tuple(v[i] for v in stacked)) for i in range(2)))
    chex.assert_trees_all_close(quick.jit(jax.vmap(grad))(stacked), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    one = jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match="x must be of rank 2 or more.*Add a batch axis"):
        ops.linear_scan(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"a must be \(b l \*f\) = \(2, 3, 4\), got \(2, 3, 1\).*broadcast_to"):
        ops.linear_scan(one[..., :1], one)
    with pytest.raises(ValueError, match="h0 must be"):
        ops.linear_scan(one, one, one)
    with pytest.raises(ValueError, match="x must be a floating or complex array, got .* int32"):
        ops.linear_scan(one, one.astype(jnp.int32))
    with pytest.raises(ValueError, match="h0 must be real when a and x are real"):
        ops.linear_scan(one, one, 1j * one[:, 0])


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(a=[0.5]), r"a must be an array, got a list. Make it one: jnp.asarray\(a\)"),
        (dict(a=0.5), "a must be an array, got a float"),
        (dict(x=None), "x must be an array, got a NoneType"),
        (dict(h0=0.0), "h0 must be a floating or complex array, got a float"),
        (dict(h0=[0.0]), "h0 must be a floating or complex array, got a list"),
        (dict(reverse=1), "reverse must be True or False, got 1.*static_argnames"),
        (dict(reverse=jnp.array(True)), "reverse must be True or False, got .*static_argnames"),
        (dict(return_state="no"), "return_state must be True or False, got 'no'"),
        (dict(implementation=None), "Unknown implementation None"),
    ],
)
def test_odd_types(change, message):
    with pytest.raises(ValueError, match=f"linear_scan: .*{message}"):
        ops.linear_scan(**dict(a=jnp.ones(4), x=jnp.ones((2, 3, 4))) | change)


@pytest.mark.parametrize("batch", [0, 2])
def test_no_steps(batch):
    h, state = ops.linear_scan(jnp.ones((batch, 0, 3)), jnp.ones((batch, 0, 3)), return_state=True)
    chex.assert_shape(h, (batch, 0, 3))
    chex.assert_trees_all_close(state, jnp.zeros((batch, 3)))
