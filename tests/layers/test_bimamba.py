"""BiMamba: every variant against loops in numpy, and against one-directional mixers with explicit flips."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import BiMamba, Mamba
from tests.layers import oracle, quick
from tests.layers.test_mamba import MASKS, D, sequence

VARIANTS = ["none", "v1", "v2"]


def make(**options):
    return quick.lively(lambda: BiMamba(D, d_state=4, **options, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("divide_out", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_loops(variant, divide_out, together):
    layer, u = make(variant=variant, divide_out=divide_out, together=together), sequence(9)
    expected = oracle.mixer(layer, u, variant, divide_out).astype(np.float32)
    chex.assert_trees_all_close(quick.apply(layer, u), expected, atol=1e-5, rtol=1e-5)


def test_v2_equals_two_mixers_and_explicit_flips():
    layer, u = make(divide_out=False), sequence(9)
    forward, backward = (quick.made(lambda: Mamba(D, d_state=4, rngs=nnx.Rngs(0))) for _ in range(2))
    for mixer, suffix in ((forward, ""), (backward, "_b")):
        for ours, name in {"conv1d": "conv1d", "x_proj": "x_proj", "dt_proj": "dt_proj"}.items():
            nnx.update(getattr(mixer, ours), nnx.state(getattr(layer, name + suffix)))
        mixer.D[...] = getattr(layer, f"D{suffix}")[...]
        mixer.A_log[...] = (layer.A_b_log if suffix else layer.A_log)[...]
        nnx.update(mixer.in_proj, nnx.state(layer.in_proj))
        nnx.update(mixer.out_proj, nnx.state(layer.out_proj))
    expected = quick.apply(forward, u) + jnp.flip(quick.apply(backward, jnp.flip(u, 1)), 1)
    chex.assert_trees_all_close(quick.apply(layer, u), expected, atol=1e-5)


def test_one_direction_is_mamba():
    one, both = Mamba(D, d_state=4, rngs=nnx.Rngs(0)), BiMamba(D, variant="none", d_state=4, rngs=nnx.Rngs(0))
    chex.assert_trees_all_close(quick.apply(one, sequence(9)), quick.apply(both, sequence(9)), atol=1e-6)


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_gradients_agree_together_and_apart(variant):
    apart, together = make(variant=variant), make(variant=variant, together=True)
    definitions = nnx.graphdef(apart), nnx.graphdef(together)

    def gradient(definition):
        loss = quick.jit(jax.grad(lambda state, u: (nnx.merge(definition, state)(u) ** 2).sum(), (0, 1)))
        return loss(nnx.state(apart), sequence(9))

    chex.assert_trees_all_close(gradient(definitions[0]), gradient(definitions[1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_does_not_reach_real_tokens(variant, together):
    layer, mask = (
        make(variant=variant, use_bias=True, together=together),
        np.concatenate(list(MASKS.values())).astype(bool),
    )
    u = np.where(mask[..., None], sequence(9, batch=len(mask)), np.float32(1e3))
    y = np.asarray(quick.apply(layer, u, mask=mask))
    for row, real in enumerate(mask):
        if real.any():
            alone = oracle.mixer(layer, u[row : row + 1, real], variant)
            chex.assert_trees_all_close(y[row, real], alone[0].astype(np.float32), atol=1e-5)
        assert not y[row, ~real].any()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_sequences_do_not_see_each_other(variant, together):
    layer, u, ids = make(variant=variant, together=together), sequence(9), np.array([[0, 0, 0, 0, 5, 5, 5, 2, 2]] * 2)
    u, y = np.asarray(u), np.asarray(quick.apply(layer, u, segment_ids=ids))
    for segment in (0, 5, 2):
        here = ids[0] == segment
        alone = oracle.mixer(layer, u[:, here], variant)
        chex.assert_trees_all_close(y[:, here], alone.astype(np.float32), atol=1e-5)


def test_the_backward_step_sizes_start_as_the_forward_ones():
    layer = BiMamba(64, rngs=nnx.Rngs(0))
    for bias in (layer.dt_proj.bias, layer.dt_proj_b.bias):
        dt = jax.nn.softplus(bias[...])
        assert 0.99e-3 < float(dt.min()) and float(dt.max()) < 0.101
