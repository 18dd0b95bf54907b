"""Layers inside `jax.shard_map`, with its check of what varies over the mesh: rows are split, parameters are not.

One device is enough for that check. With XLA_FLAGS=--xla_force_host_platform_device_count=2 the rows go to two.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import DSS, LRU, S4, S4D, S4ND, S5
from ssmjax.ops import fft_conv_nd, separable_conv
from tests.layers import quick

B, LENGTH, D, CHUNK = 2, 7, 3, 4
MAKE = {
    "s4": functools.partial(S4, D, d_state=4, l_max=LENGTH),
    "s4d": functools.partial(S4D, D, d_state=4),
    "dss": functools.partial(DSS, D, d_state=4, l_max=LENGTH),
    "softmax": functools.partial(DSS, D, d_state=4),  # over the length of each row: whole sequences only
    "s5": functools.partial(S5, D, d_state=4),
    "lru": functools.partial(LRU, D, d_state=4),
}
MASK = np.array([False] + [True] * (LENGTH - 2) + [False])


def in_chunks(layer, u):
    first, state = layer(u[:, :CHUNK], return_state=True)
    second, state = layer(u[:, CHUNK:], state=state, return_state=True)
    return jnp.concatenate([first, second], axis=1), state


def padded(layer, u):
    mask = jnp.broadcast_to(MASK, u.shape[:2])
    stateful = not (isinstance(layer, DSS) and layer.l_max is None)
    return layer(u, mask=mask, return_state=True) if stateful else (layer(u, mask=mask), u)


FORMS = {
    "conv": lambda layer, u: (layer(u), u),
    "scan": lambda layer, u: layer(u, mode="scan", return_state=True),
    "return_state": in_chunks,
    "masked": padded,
}
WHOLE = ("conv", "masked")


def assert_same_in_shard_map(run, shared, rows):
    """Compares values (of rows) and gradients of `run(shared, rows)` with those inside `shard_map`."""
    mesh = jax.make_mesh((min(2, jax.device_count()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec

    def loss(shared, rows):
        values = run(shared, rows)
        return sum((v * v.conj()).real.sum() for v in jax.tree.leaves(values)), values

    def inside(shared, rows):
        total, values = loss(shared, rows)
        return jax.lax.psum(total, "data"), values

    sharded = jax.shard_map(inside, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), P("data")))
    both = [jax.value_and_grad(f, argnums=(0, 1), has_aux=True) for f in (sharded, loss)]
    ours, wanted = quick.jit(lambda *arguments: [f(*arguments) for f in both])(shared, rows)
    chex.assert_trees_all_close(ours, wanted, rtol=1e-5, atol=1e-5)


def rows_of(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [(n, f) for n in MAKE for f in FORMS if n != "softmax" or f in WHOLE])
def test_layers(name, form):
    definition, state = nnx.split(MAKE[name](rngs=nnx.Rngs(0)))
    assert_same_in_shard_map(
        lambda state, u: FORMS[form](nnx.merge(definition, state), u), state, rows_of(B, LENGTH, D)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_both_directions(name):
    layer = MAKE[name](bidirectional="exclusive", rngs=nnx.Rngs(0))
    definition, state = nnx.split(layer)

    def run(state, u):
        layer = nnx.merge(definition, state)
        return layer(u), layer(u, mode="scan")

    assert_same_in_shard_map(run, state, rows_of(B, LENGTH, D))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "linear"])
def test_steps_of_s4(form):
    definition, state = nnx.split(MAKE["s4"](rngs=nnx.Rngs(0)))

    def run(state, u):
        layer = nnx.merge(definition, state)
        return layer.step(u[:, 0], layer.init_state(len(u)), recurrence=layer.recurrence(form=form))

    assert_same_in_shard_map(run, state, rows_of(B, LENGTH, D))


@pytest.mark.slow
def test_convolutions_of_images():
    def run(kernel, x):
        terms = jnp.broadcast_to(kernel[:, None, 0], (5, 1, 3, D))  # so many that all axes are transformed
        return fft_conv_nd(x, kernel), separable_conv(x, [terms, terms])

    assert_same_in_shard_map(run, rows_of(5, 2, 3, D), rows_of(B, 4, 5, D))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("make", "axes"),
    [(S4D, 1), (DSS, 1), (S4ND, 2)],
    ids=["S4D", "DSS", "S4ND"],
)
def test_a_rate_without_a_value_where_a_length_depends_on_it(make, axes):
    layer, u = make(D, d_state=4, l_max=4, rngs=nnx.Rngs(0)), jnp.zeros((1, *[3] * axes, D))
    message = "rate must be a Python number, got .*close over the number"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda rate: layer(u, rate=rate), 1.0)
    with pytest.raises(ValueError, match="rate must be positive"):
        jax.eval_shape(lambda: layer(u, rate=0))


def test_dss_refuses_the_name_that_s4d_has_for_its_rule():
    with pytest.raises(ValueError, match="DSS: Unknown discretization 'dss'.*softmax, zoh"):
        jax.eval_shape(lambda: DSS(D, discretization="dss", rngs=nnx.Rngs(0)))


@pytest.mark.usefixtures("as_a_user")
def test_one_tap_is_left_at_a_large_rate():
    layer = quick.made(lambda: S4ND(D, d_state=4, l_max=4, rngs=nnx.Rngs(0)))
    kernel, _ = jax.eval_shape(lambda: layer.axis_kernels((3, 3), rate=10)[0])
    assert kernel.shape[2] == 2  # one into either direction
    for rate in (0, (1.0, -1.0)):
        with pytest.raises(ValueError, match="S4ND: rate must be positive"):
            layer.axis_kernels((3, 3), rate=rate)
