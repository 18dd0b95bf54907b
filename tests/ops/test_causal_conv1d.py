"""The causal convolution against float64 loops, its gradients against autodiff of the reference, and its state."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from tests.layers import quick
from tests.ops import oracle


def problem(l, k, *, b=2, e=3, seed=0):
    rng = np.random.default_rng(seed)

    def real(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {"x": real(b, l, e), "weight": real(k, e), "bias": real(e), "state": real(b, k - 1, e)}


def ids_of(b, l):
    return np.random.default_rng(3).integers(0, 5, (b, l)) // 4


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("l", "k", "activation"), [(1, 4, None), (3, 4, None), (37, 4, "silu"), (5, 1, "silu")])
def test_values_and_gradients(l, k, activation, packed, reverse):
    p, ids = problem(l, k), ids_of(2, l) if packed else None
    run = functools.partial(ops.causal_conv1d, activation=activation, segment_ids=ids, reverse=reverse)
    y = jax.jit(run)(**p)
    wanted = oracle.causal_conv1d(**p, activation=activation, segment_ids=ids, reverse=reverse)
    np.testing.assert_allclose(y, wanted, atol=1e-5)

    def grads(implementation):
        loss = jax.grad(lambda p: jnp.sin(run(**p, implementation=implementation)).sum())
        return jax.jit(loss, compiler_options=oracle.QUICK_COMPILE)(p)

    chex.assert_trees_all_close(grads("xla"), grads("reference"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 4, 5, 6), (0, 4, 6), (0, 1, 6)])
def test_carried_state_equals_whole(cuts, reverse):
    p, ids = problem(6, 4), np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    run = functools.partial(ops.causal_conv1d, weight=p["weight"], bias=p["bias"], reverse=reverse, return_state=True)
    wanted, last = run(p["x"], state=p["state"], segment_ids=ids)
    state, pieces = p["state"], []
    spans = list(zip(cuts, cuts[1:], strict=False))
    for start, end in spans[::-1] if reverse else spans:
        # A state belongs to the segment next to it: the caller drops it where a cut falls on a change of segment.
        before = end if reverse else start - 1
        if 0 <= before < 6:
            same = ids[:, before] == ids[:, end - 1 if reverse else start]
            state = jnp.where(same[:, None, None], state, 0)
        y, state = run(p["x"][:, start:end], state=state, segment_ids=ids[:, start:end])
        pieces.append(y)
    y = jnp.concatenate(pieces[::-1] if reverse else pieces, axis=1)
    chex.assert_trees_all_close((y, state), (wanted, last), atol=1e-6)


def test_gradients_through_the_returned_state():
    p = problem(2, 4)
    y, vjp = jax.vjp(
        lambda x, state: ops.causal_conv1d(x, p["weight"], state=state, return_state=True)[1], p["x"], p["state"]
    )
    np.testing.assert_array_equal(y, np.concatenate([p["state"][:, 2:], p["x"]], axis=1))
    dx, dstate = vjp(jnp.ones_like(y))
    np.testing.assert_array_equal(dx, np.ones_like(dx))
    np.testing.assert_array_equal(dstate[0, :, 0], [0, 0, 1])


def test_reverse_is_flip():
    p = problem(6, 4)
    wanted = ops.causal_conv1d(p["x"][:, ::-1], p["weight"], p["bias"], state=p["state"][:, ::-1])[:, ::-1]
    chex.assert_trees_all_close(ops.causal_conv1d(**p, reverse=True), wanted, atol=1e-6)


def test_vmap_empty_and_low_precision():
    p = problem(5, 4)
    stacked = {k: np.stack([v, 0.5 * v]) for k, v in p.items()}
    grad = jax.grad(lambda p: (ops.causal_conv1d(**p, activation="silu") ** 2).sum())
    alone = quick.jit(grad)
    wanted = jax.tree.map(lambda *v: np.stack(v), *(alone({k: v[i] for k, v in stacked.items()}) for i in range(2)))
    chex.assert_trees_all_close(quick.jit(jax.vmap(grad))(stacked), wanted, rtol=1e-4, atol=1e-5)
    for b, l, e in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        run = quick.jit(lambda x, weight: ops.causal_conv1d(x, weight, return_state=True))
        chex.assert_shape(run(np.ones((b, l, e), np.float32), np.ones((4, e), np.float32)), ((b, l, e), (b, 3, e)))
    low = {k: jnp.asarray(v, jnp.bfloat16) for k, v in p.items()}
    y = quick.jit(lambda p: ops.causal_conv1d(**p))(low)
    exact = oracle.causal_conv1d(**{k: np.asarray(v, np.float32) for k, v in low.items()})
    rounded = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64)
    assert y.dtype == jnp.bfloat16
    assert np.abs(np.asarray(y, np.float64) - exact).max() <= 2 * np.abs(rounded - exact).max()
    chex.assert_trees_all_equal_dtypes(quick.jit(jax.grad(lambda p: ops.causal_conv1d(**p).sum()))(low), low)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("x", "weight", "kwargs", "message"),
    [
        ((2, 3), (4, 3), {}, r"x must be of rank 3, \(b l e\), got \(2, 3\)"),
        ((2, 5, 3), (3, 4), {}, "Taps come first here"),
        ((2, 5, 3), (3, 1, 4), {}, r"weight\[:, 0\].T"),
        ((2, 3, 5), (4, 3), {}, "channels-first"),
        ((2, 3, 5), (3, 4), {}, "channels-first"),
        ((2, 5, 3), (0, 3), {}, "k >= 1"),
        ((2, 5, 3), (4, 3), {"activation": "relu"}, "activation must be 'silu' or None, got 'relu'"),
        ((2, 5, 3), (4, 3), {"state": (2, 4, 3)}, r"state must be \(b k-1 e\) = \(2, 3, 3\)"),
        ((2, 5, 3), (4, 3), {"bias": (4,)}, "bias must be"),
        ((2, 5, 3), (4, 3), {"segment_ids": (2, 5)}, "segment_ids must be an integer array"),
    ],
)
def test_errors(x, weight, kwargs, message):
    kwargs = {k: jnp.ones(v) if isinstance(v, tuple) else v for k, v in kwargs.items()}
    with pytest.raises(ValueError, match=message):
        ops.causal_conv1d(jnp.ones(x), jnp.ones(weight), **kwargs)


def test_a_float32_state_is_not_rounded_to_a_bfloat16_input():
    x, weight = jnp.ones((1, 3, 2), jnp.bfloat16), jnp.ones((3, 2))
    state = jnp.full((1, 2, 2), 100.4)
    got, wanted = (ops.causal_conv1d(x, weight, state=state, implementation=i) for i in ("xla", "reference"))
    chex.assert_trees_all_equal(got, wanted)
