"""Samplers: against closed forms, orders of accuracy, guidance, one compilation, the same bits, messages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.diffusion import SAMPLERS, Denoiser, cosine_schedule, linear_schedule, sample, sample_flow
from ssmjax.diffusion import flow as flow_module
from ssmjax.diffusion import sampling as sampling_module
from tests.diffusion.toys import DEVIATION, MEAN, Classes, Normal, NormalFlow, exact

NOISE = jax.random.normal(jax.random.key(7), (64, 1, 1, 1))


def error(sampler, steps):
    drawn = sample(Normal(), count=64, key=jax.random.key(0), steps=steps, sampler=sampler, noise=NOISE, clip=None)
    return np.abs(np.asarray(drawn) - exact(NOISE)).max()


def test_toys_are_denoisers():
    assert isinstance(Normal(), Denoiser) and isinstance(Classes(), Denoiser)


def test_ddim_follows_the_probability_flow():
    errors = [error("ddim", steps) for steps in (25, 50, 1000)]
    assert errors[-1] < 5e-3
    assert 1.5 < errors[0] / errors[1] < 2.5  # first order


def test_dpm_solver_is_of_higher_order():
    errors = [error("dpm++", steps) for steps in (12, 25, 50)]
    assert errors[0] < error("ddim", 100) and errors[2] < error("ddim", 50) / 20
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3  # second order


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 1.0)])
def test_fresh_noise_gives_the_distribution(sampler, eta):
    drawn = sample(Normal(), count=4000, key=jax.random.key(1), steps=200, sampler=sampler, eta=eta, clip=None)
    assert abs(float(drawn.mean()) - MEAN) < 0.02
    assert abs(float(drawn.std()) - DEVIATION) < 0.02


def test_the_path_ends_in_the_image():
    for sampler in ("ddim", "dpm++"):
        images, path = sample(
            Normal(), count=3, key=jax.random.key(0), steps=5, sampler=sampler, return_path=True, clip=None
        )
        chex.assert_shape(path, (5, 3, 1, 1, 1))
        chex.assert_trees_all_close(images, path[-1], atol=1e-6)


def test_clipping_bounds_the_estimates():
    _, path = sample(Normal(), count=8, key=jax.random.key(0), steps=4, clip=0.25, return_path=True)
    assert float(jnp.abs(path).max()) == 0.25


def test_classes_and_guidance():
    labels, model = jnp.array([3, 8]), Classes()

    def value(**options):
        return np.asarray(sample(model, labels, key=jax.random.key(0), steps=5, clip=None, **options))

    for sampler in SAMPLERS:
        np.testing.assert_allclose(value(sampler=sampler).mean((1, 2, 3)), [0.3, 0.8], atol=1e-2)
    # Here the noise is linear in the class, so that guidance multiplies what the class adds to none.
    np.testing.assert_allclose(value(guidance=2.0).mean((1, 2, 3)), [0.6, 1.6], atol=1e-4)
    partly = value(guidance=2.0, guidance_channels=1).mean((1, 2))
    np.testing.assert_allclose(partly, [[0.6, 0.3], [1.6, 0.8]], atol=1e-4)
    without = sample(model, count=2, key=jax.random.key(0), steps=5, clip=None)
    np.testing.assert_allclose(without, 0, atol=1e-4)


def test_the_second_call_compiles_nothing_and_has_the_same_bits():
    model = Classes()
    first = sample(model, jnp.array([1, 2]), key=jax.random.key(3), steps=6, guidance=1.5, sampler="ddpm")
    compiled = sampling_module._run._cache_size()
    again = sample(model, jnp.array([1, 2]), key=jax.random.key(3), steps=6, guidance=1.5, sampler="ddpm")
    model.bars[...] = model.bars[...] * 0.999  # other weights
    options = dict(steps=9, guidance=3.0, sampler="ddpm", clip=None, schedule=cosine_schedule())
    other = sample(model, np.array([5, 6]), key=jax.random.key(4), **options)
    assert sampling_module._run._cache_size() == compiled
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
    different = sample(Classes(), jnp.array([1, 2]), key=jax.random.key(4), steps=6, guidance=1.5, sampler="ddpm")
    assert float(jnp.abs(first - different).max()) > 0


def test_flow_follows_its_line():
    wanted = MEAN + DEVIATION * np.asarray(NOISE)

    def flow_error(solver, steps):
        drawn = sample_flow(NormalFlow(), count=64, key=jax.random.key(0), steps=steps, solver=solver, noise=NOISE)
        return np.abs(np.asarray(drawn) - wanted).max()

    assert 1.5 < flow_error("euler", 32) / flow_error("euler", 64) < 2.5
    assert flow_error("heun", 32) / flow_error("heun", 64) > 3
    compiled = flow_module._run._cache_size()
    flow_error("heun", 64)
    assert flow_module._run._cache_size() == compiled


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sample(Normal(), count=2, key=jax.random.key(0), steps=1001),
            "sample: steps must be an int, at least 1, at most 1000, got 1001. The schedule has 1000 steps",
        ),
        (
            lambda: sample(
                Normal(), count=2, key=jax.random.key(0), steps=21, schedule=linear_schedule(1000).respaced(20)
            ),
            "at most 20, got 21",
        ),
        (
            lambda: sample(Normal(), count=2, key=jax.random.key(0), guidance=2.0),
            "sample: guidance must be left out for a network without classes, got 2.0. .* made and trained with",
        ),
        (
            lambda: sample(Normal(), jnp.array([1]), key=jax.random.key(0)),
            "labels must be left out for a network without classes",
        ),
        (
            lambda: sample(Classes(), count=2, key=jax.random.key(0), guidance=2.0),
            "guidance must be 1 without labels, got 2.0",
        ),
        (lambda: sample(Classes(), jnp.array([3, 11]), key=jax.random.key(0)), r"labels must be in 0..10 \(10 is the"),
        (lambda: sample(Classes(), jnp.array([0.5]), key=jax.random.key(0)), r"labels must be \(b\) integers"),
        (lambda: sample(Classes(), key=jax.random.key(0)), "labels and count must be one of the two"),
        (
            lambda: sample(Normal(), count=1, key=jax.random.key(0), sampler="dim"),
            "Unknown sampler 'dim'. Did you mean 'ddim'",
        ),
        (
            lambda: sample(Normal(), count=1, key=jax.random.key(0), noise=jnp.zeros((2, 1, 1, 1))),
            r"noise must be \(b, y, x, d\) = \(1, 1, 1, 1\), got \(2, 1, 1, 1\)",
        ),
        (
            lambda: sample_flow(Classes(), jnp.array([1]), key=jax.random.key(0)),
            "model must be a network without a learned variance, got 'Classes'. .*learn_sigma=False",
        ),
        (
            lambda: sample_flow(NormalFlow(), count=1, key=jax.random.key(0), solver="rk4"),
            "Unknown solver 'rk4'",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
