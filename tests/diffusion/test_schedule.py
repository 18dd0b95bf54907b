"""Schedules: published values, what respacing keeps, messages."""

import numpy as np
import pytest

from ssmjax.diffusion import Schedule, add_noise, cosine_schedule, linear_schedule


def test_the_linear_schedule_is_that_of_ddpm():
    schedule = linear_schedule(1000)
    np.testing.assert_allclose(schedule.betas[[0, 1, 999]], [1e-4, 1e-4 + 0.0199 / 999, 0.02])
    np.testing.assert_allclose(schedule.alpha_bars[-1], 4.0358e-05, rtol=1e-4)
    np.testing.assert_allclose(linear_schedule(100).betas[[0, 99]], [1e-3, 0.2])


def test_the_cosine_schedule_follows_its_curve():
    schedule = cosine_schedule(1000)

    def curve(t):
        return np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

    np.testing.assert_allclose(schedule.alpha_bars[:990], curve(np.arange(1, 991)) / curve(0), rtol=1e-9)
    assert schedule.betas.max() == 0.999


def test_respacing_keeps_the_noise_of_the_steps_that_stay():
    schedule = linear_schedule(1000)
    respaced = schedule.respaced(10)
    assert respaced.timesteps.tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    np.testing.assert_allclose(respaced.alpha_bars, schedule.alpha_bars[respaced.timesteps], rtol=1e-12)
    assert schedule.respaced(1).timesteps.tolist() == [999]
    np.testing.assert_allclose(schedule.respaced(1000).betas, schedule.betas, rtol=1e-9)
    assert respaced.respaced(4).timesteps.tolist() == [0, 333, 666, 999]


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "log_snr"])
@pytest.mark.parametrize("steps", [2, 3, 50, 999, 1000])
def test_every_spacing_keeps_distinct_steps_from_first_to_last(spacing, steps):
    kept = linear_schedule(1000).respaced(steps, spacing).timesteps
    assert len(kept) == steps and kept[0] == 0 and kept[-1] == 999 and (np.diff(kept) > 0).all()


def test_spacing_by_the_log_snr_is_even_in_it():
    schedule = linear_schedule(1000)
    bars = schedule.respaced(9, "log_snr").alpha_bars
    gaps = np.diff(np.log(bars / (1 - bars)))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=0.05)


def test_the_posterior_is_bayes_rule():
    """The product of the two normal densities, by precision, for a step in the middle."""
    schedule, t = linear_schedule(1000), 400
    beta, before = schedule.betas[t], schedule.alpha_bars[t - 1]
    precision = 1 / (1 - before) + (1 - beta) / beta
    np.testing.assert_allclose(schedule.posterior_variances[t], 1 / precision)
    of_image, of_noisy = schedule.posterior_mean
    np.testing.assert_allclose(of_image[t], np.sqrt(before) / (1 - before) / precision)
    np.testing.assert_allclose(of_noisy[t], np.sqrt(1 - beta) / beta / precision)
    assert schedule.posterior_variances[0] == 0 and np.isfinite(schedule.log_variance_bounds[0]).all()


def test_add_noise():
    schedule, rng = linear_schedule(), np.random.default_rng(0)
    images, noise = (rng.normal(size=(2, 3, 3, 1)).astype(np.float32) for _ in range(2))
    noisy = add_noise(schedule, images, np.array([0, 500]), noise)
    for i, t in enumerate((0, 500)):
        bar = schedule.alpha_bars[t]
        np.testing.assert_allclose(noisy[i], np.sqrt(bar) * images[i] + np.sqrt(1 - bar) * noise[i], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_schedule(100).respaced(101), r"respaced: steps must be an int.*at most 100, got 101"),
        (lambda: linear_schedule(100).respaced(10, "even"), "respaced: Unknown spacing 'even'"),
        (lambda: linear_schedule(10), r"betas must be a sequence of numbers in \(0, 1\)"),
        (lambda: cosine_schedule(0), "steps must be a positive int, got 0"),
        (lambda: Schedule(np.array([0.1, 0.2]), np.arange(3)), r"timesteps must be \(2\), one a beta"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_quadratic_spacing_is_even_in_the_root_of_time():
    assert linear_schedule(1000).respaced(4, "quadratic").timesteps.tolist() == [0, 111, 444, 999]


def test_the_first_variance_is_that_of_the_second_step():
    schedule = linear_schedule(1000)
    least, largest = schedule.log_variance_bounds
    bars = np.cumprod(1 - schedule.betas[:2])
    np.testing.assert_allclose(np.exp(least[:2]), schedule.betas[1] * (1 - bars[0]) / (1 - bars[1]))
    np.testing.assert_allclose(np.exp(largest), schedule.betas)
