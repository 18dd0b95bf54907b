"""S5: its initial values, its stability, and its checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_flax import event_ssm, s5
from ssmjax.checkpoints.from_torch import s5_pytorch
from ssmjax.init.diagonal import block_diagonal_legs
from ssmjax.layers import S5
from tests.layers import quick

STABLE = ("zoh", "bilinear", "impulse", "dirac", "async")

LIMIT = 1 + 3e-7
"""One, and the rounding of its computation: a mode that loses less than that in a step comes out as one."""


@pytest.mark.parametrize(
    ("c_init", "deviation"), [("trunc_standard_normal", 0.0625), ("lecun_normal", 0.00552), ("complex_normal", 0.7071)]
)
def test_initial_output_matrices_are_those_of_the_original(c_init, deviation):
    """The deviations measured on the original at h = 128, P = 256: 0.062, 0.0055 and 0.711."""
    layer = S5(128, d_state=256, blocks=8, c_init=c_init, rngs=nnx.Rngs(0))
    assert layer.C.shape == (128, 128, 2)
    assert float(layer.C[...].std()) == pytest.approx(deviation, rel=0.02)


def test_initial_values():
    layer = S5(96, d_state=32, blocks=4, dt_min=1e-2, dt_max=0.5, bidirectional="inclusive", rngs=nnx.Rngs(0))
    A, _, _ = block_diagonal_legs(32, 4)
    np.testing.assert_allclose(layer.Lambda_re[...] + 1j * layer.Lambda_im[...], A, rtol=1e-6)
    assert (layer.Lambda_im[...] < 0).all()
    assert float(layer.B[...].std()) == pytest.approx(0.5**0.5 / 32**0.5, rel=0.1)
    assert float(layer.D[...].std()) == pytest.approx(1, rel=0.3)
    step = np.exp(layer.log_step[...])
    assert step.shape == (16, 1) and 1e-2 < step.min() < 0.05 and 0.1 < step.max() < 0.5
    assert not np.allclose(layer.C1[...], layer.C2[...])
    assert S5(96, d_state=32, conj_sym=False, rngs=nnx.Rngs(0)).C.shape == (96, 32, 2)


def test_conjugate_pairs_may_be_stored_or_not():
    """A layer that stores both modes of each pair, with the same numbers, is the same function."""
    half = S5(3, d_state=8, rngs=nnx.Rngs(0))
    full = S5(3, d_state=8, conj_sym=False, rngs=nnx.Rngs(1))
    both = {"Lambda_re": 1, "Lambda_im": -1, "log_step": 1}
    for name, sign in both.items():
        x = getattr(half, name)[...]
        getattr(full, name)[...] = jnp.concatenate([x, sign * x])
    flip = jnp.array([1.0, -1.0])
    full.B[...] = jnp.concatenate([half.B[...], half.B[...] * flip[None, None]])
    full.C[...] = jnp.concatenate([half.C[...], half.C[...] * flip[None, None]], axis=1)
    full.D[...] = half.D[...]
    u = jax.random.normal(jax.random.key(2), (2, 20, 3))
    np.testing.assert_allclose(quick.apply(full, u), quick.apply(half, u), atol=1e-5)


@pytest.mark.parametrize("rule", STABLE)
def test_stays_stable_whatever_an_update_does(rule):
    layer = S5(3, d_state=64, discretization=rule, rngs=nnx.Rngs(0))

    @quick.jit
    def run(Lambda_re, Lambda_im, log_step, dts):
        updated = nnx.clone(layer)
        updated.Lambda_re, updated.Lambda_im = nnx.Param(Lambda_re), nnx.Param(Lambda_im)
        updated.log_step = nnx.Param(log_step)
        y = updated(jnp.ones((1, 300, 3)))
        return updated._discretize(1.0, None), updated._discretize(1.0, dts), y

    for seed in range(4):
        draw = np.random.default_rng(seed).standard_normal
        updates = 100 * draw(32), 1e4 * draw(32), 30 * draw((32, 1)), draw((1, 5)) ** 2
        *pairs, y = run(*(x.astype(np.float32) for x in updates))
        for decay, gain in pairs:
            assert np.abs(decay).max() < LIMIT and np.isfinite(gain).all()
        assert np.isfinite(y).all()


def test_unclipped_it_need_not_be_stable():
    layer = S5(3, d_state=8, clip_eigs=False, rngs=nnx.Rngs(0))
    layer.Lambda_re[...] = jnp.full((4,), 0.5)
    assert np.abs(layer._discretize(1.0, None)[0]).min() > 1


def test_nothing_of_length_and_features_and_modes_is_made():
    """With steps of varying length the largest array has the size of the input or of the state."""
    layer = S5(32, d_state=32, rngs=nnx.Rngs(0))
    definition, parameters = nnx.split(layer)

    def loss(parameters, u, dts):
        return (nnx.merge(definition, parameters)(u, dts=dts) ** 2).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(parameters, jnp.ones((1, 50, 32)), jnp.ones((1, 50)))
    assert largest(jaxpr.jaxpr) <= 2 * 50 * 32


def largest(jaxpr) -> int:
    inner = [x.jaxpr for e in jaxpr.eqns for x in jax.tree.leaves(e.params, is_leaf=is_jaxpr) if is_jaxpr(x)]
    sizes = [var.aval.size for e in jaxpr.eqns for var in e.outvars]
    return max([*sizes, *map(largest, inner)], default=0)


def is_jaxpr(x) -> bool:
    return hasattr(x, "jaxpr")


def test_converters_name_what_does_not_fit():
    arguments = s5.config_from_reference({"H": 4, "P": 8, "J": 2, "clip_eigs": True, "bidirectional": True})
    assert (arguments["blocks"], arguments["bidirectional"], arguments["dt_min"]) == (2, "inclusive", 1e-3)
    theirs = s5.to_reference(model_arrays(S5(**arguments, rngs=nnx.Rngs(0))), arguments)
    theirs["C3"], theirs["D"] = theirs.pop("C2"), theirs["D"][:3]
    with pytest.raises(ValueError, match=r"(?s)unknown: C3.*missing: C2.*D: got \(3,\) float32, wanted \(4,\)"):
        s5.convert(theirs, arguments)
    with pytest.raises(ValueError, match="Unknown argument 'bidir'. Did you mean 'bidirectional'"):
        s5.config_from_reference({"H": 4, "bidir": True})
    with pytest.raises(ValueError, match="P must be a multiple of block_size = 3, got 8"):
        event_ssm.config_from_reference({"H": 4, "P": 8, "block_size": 3})


@pytest.mark.parametrize("c_init", ["trunc_standard_normal", "complex_normal"])
def test_converters_go_both_ways(c_init):
    theirs = {"H": 4, "P": 8, "C_init": c_init, "bidirectional": True}
    arguments = s5.config_from_reference(theirs)
    arrays = model_arrays(S5(**arguments, rngs=nnx.Rngs(0)))
    jax.tree.map(np.testing.assert_array_equal, s5.convert(s5.to_reference(arrays, arguments), arguments), arrays)


@pytest.mark.parametrize("bidirectional", ["none", "inclusive"])
def test_the_torch_converter_goes_both_ways(bidirectional):
    arrays = model_arrays(S5(4, d_state=6, conj_sym=False, bidirectional=bidirectional, rngs=nnx.Rngs(0)))
    theirs = s5_pytorch.to_reference(arrays)
    assert theirs["seq.Lambda"].dtype == theirs["seq.C"].dtype == np.complex64
    arguments = s5_pytorch.layer_arguments(theirs)
    assert arguments["bidirectional"] == bidirectional
    jax.tree.map(np.testing.assert_array_equal, s5_pytorch.convert(theirs, arguments), arrays)
