"""The terms of the loss: what makes them zero, likelihoods, what learns from what."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ssmjax
from ssmjax.diffusion import diffusion_loss, flow_loss, hybrid_terms, linear_schedule
from ssmjax.diffusion.losses import _log_likelihood
from tests.layers import quick

SCHEDULE = linear_schedule()


class Told(nnx.Module):
    """Predicts what it was given."""

    image_shape = (2, 2, 1)
    null_label = None
    learn_sigma = True

    def __init__(self, noise, share):
        self.noise, self.share = nnx.Param(noise), nnx.Param(share)

    def __call__(self, images, times, labels=None, *, train=False, key=None):
        return jnp.concatenate([self.noise[...], self.share[...]], axis=-1)


def setting():
    keys = jax.random.split(jax.random.key(0), 2)
    images = jnp.round(jax.random.uniform(keys[0], (3, 2, 2, 1), minval=-1, maxval=1) * 127.5) / 127.5
    return images, jnp.array([5, 300, 999]), jax.random.normal(keys[1], images.shape)


def test_the_right_prediction_has_no_loss():
    images, times, noise = setting()
    terms = hybrid_terms(Told(noise, -jnp.ones_like(noise)), images, times, noise, schedule=SCHEDULE)
    np.testing.assert_allclose(terms["mse"], 0, atol=1e-12)
    np.testing.assert_allclose(terms["vb"], 0, atol=1e-4)
    wide = hybrid_terms(Told(noise, jnp.ones_like(noise)), images, times, noise, schedule=SCHEDULE)
    least, largest = (bound[np.asarray(times)] for bound in SCHEDULE.log_variance_bounds)
    expected = 0.5 * (-1 + largest - least + np.exp(least - largest)) / math.log(2)
    np.testing.assert_allclose(wide["vb"], expected, rtol=1e-3, atol=1e-5)


def test_the_mean_does_not_learn_from_the_bound():
    images, times, noise = setting()

    def bound(model):
        return hybrid_terms(model, images, times, noise, schedule=SCHEDULE)["vb"].sum()

    gradient = nnx.grad(bound)(Told(noise + 0.1, jnp.zeros_like(noise)))
    assert float(jnp.abs(gradient["noise"][...]).max()) == 0
    assert float(jnp.abs(gradient["share"][...]).min()) > 0


def test_likelihoods_of_all_grey_values_sum_to_one():
    greys = (jnp.arange(256) / 127.5 - 1)[:, None, None, None]
    for mean, deviation in ((0.1, 0.02), (-0.97, 0.1), (1.0, 0.005)):
        log = _log_likelihood(greys, jnp.full_like(greys, mean), jnp.full_like(greys, math.log(deviation)))
        np.testing.assert_allclose(jnp.exp(log).sum(), 1, atol=1e-4)


def test_the_first_step_is_a_likelihood():
    images, _, noise = setting()
    terms = hybrid_terms(Told(noise, -jnp.ones_like(noise)), images, jnp.zeros(3, int), noise, schedule=SCHEDULE)
    sigma = math.exp(0.5 * SCHEDULE.log_variance_bounds[0][0])
    bits = -math.log2(math.erf(1 / 255 / sigma / math.sqrt(2)))  # of a pixel hit in its middle
    np.testing.assert_allclose(terms["vb"], bits, atol=2e-3)


class Echo(nnx.Module):
    """Predicts its input plus a thousandth of the time it is told."""

    image_shape = (2, 2, 1)
    null_label = None
    learn_sigma = False

    def __call__(self, images, times, labels=None, *, train=False, key=None):
        return images + times[:, None, None, None] / 1000


def test_a_shortened_schedule_tells_the_times_of_the_full_one():
    images, _, noise = setting()
    short = SCHEDULE.respaced(4)
    terms = hybrid_terms(Echo(), images, jnp.array([1, 2, 3]), noise, schedule=short)
    bars = short.alpha_bars[1:, None, None, None]
    out = np.sqrt(bars) * images + np.sqrt(1 - bars) * noise + np.array([0.333, 0.666, 0.999])[:, None, None, None]
    np.testing.assert_allclose(terms["mse"], ((noise - out) ** 2).mean((1, 2, 3)), rtol=1e-4)


def test_the_bound_is_the_divergence_of_two_normals():
    images, times, noise = setting()
    error = 0.2
    terms = hybrid_terms(Told(noise + error, jnp.zeros_like(noise)), images, times, noise, schedule=SCHEDULE)
    bars, (least, largest) = SCHEDULE.alpha_bars, (bound[np.asarray(times)] for bound in SCHEDULE.log_variance_bounds)
    t = np.asarray(times)
    apart = SCHEDULE.posterior_mean[0][t] * error * np.sqrt(1 / bars[t] - 1)
    log = (least + largest) / 2
    wanted = 0.5 * (-1 + log - least + np.exp(least - log) + apart**2 / np.exp(log)) / math.log(2)
    np.testing.assert_allclose(terms["vb"], wanted, rtol=2e-3, atol=1e-5)


class Velocity(nnx.Module):
    """The velocity from one image, 0.3 everywhere, to the noise, and something added to it."""

    image_shape = (2, 2, 1)
    null_label = None
    learn_sigma = False

    def __init__(self, added):
        self.added = nnx.Param(jnp.asarray(added))

    def __call__(self, images, times, labels=None, *, train=False, key=None):
        share = times[:, None, None, None] / 1000
        return (images - (1 - share) * 0.3) / share - 0.3 + self.added[...]


def test_the_loss_of_a_flow_is_the_mean_square_from_its_velocity():
    loss = quick.jit(lambda added, key: flow_loss(Velocity(added), {"image": jnp.full((4, 2, 2, 1), 0.3)}, key)[0])
    for added in (0.0, 0.5):
        np.testing.assert_allclose(loss(added, jax.random.key(0)), added**2, atol=1e-5)


@pytest.mark.parametrize(("loss", "learned"), quick.first([(diffusion_loss, True), (flow_loss, False)]))
def test_losses_fall_in_training_steps(loss, learned):
    """A few steps on one batch, through the whole network."""
    images = jnp.zeros((4, 8, 8, 1)).at[:, 2:6, 2:6].set(1.0)
    batch = {"image": images, "label": jnp.array([0, 1, 2, 3])}
    size = dict(img_size=8, patch_size=4, d_model=16, depth=2, d_state=4)
    model = quick.made(lambda: ssmjax.create_model("dis_nano", **size, learn_sigma=learned))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    definition, state = nnx.split((model, optimizer))

    @quick.jit
    def run(state, keys):
        def step(state, key):
            model, optimizer = nnx.merge(definition, state)
            value, gradient = nnx.value_and_grad(lambda model: loss(model, batch, key)[0])(model)
            optimizer.update(model, gradient)
            return nnx.state((model, optimizer)), value

        return jax.lax.scan(step, state, keys)[1]

    values = run(state, jax.vmap(jax.random.key)(jnp.arange(100)))
    assert np.mean(values[-20:]) < 0.5 * np.mean(values[:5])


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    model = nnx.eval_shape(lambda: ssmjax.create_model("dis_nano"))
    with pytest.raises(ValueError, match="flow_loss: model must be a network without a learned variance"):
        flow_loss(model, {}, jax.random.key(0))
    with pytest.raises(ValueError, match=r"diffusion_loss: batch\['image'\] must be \(b, y, x, d\)"):
        diffusion_loss(model, {"image": jnp.zeros((16, 16, 1))}, jax.random.key(0))
