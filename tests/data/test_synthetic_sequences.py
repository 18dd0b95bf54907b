"""Copying, adding and delay: what stands where, and the targets recomputed from the inputs."""

import numpy as np
import pytest

from ssmjax.data.synthetic import adding_batch, copying_batch, delay_batch, touch_tones, white_noise

RNG = np.random.default_rng(0)


def test_copying_has_tokens_blanks_and_markers():
    batch = copying_batch(0, 0, batch_size=500, gap=100, memorized=10, vocabulary=10)
    tokens, target = batch["tokens"], batch["target"]
    assert tokens.shape == (500, 120)
    assert target.shape == (500, 10)
    assert tokens.dtype == target.dtype == np.int32
    np.testing.assert_array_equal(tokens[:, :10], target)
    np.testing.assert_array_equal(tokens[:, 10:110], 0)
    np.testing.assert_array_equal(tokens[:, 110:], 9)
    shares = np.bincount(target.ravel(), minlength=10) / target.size
    np.testing.assert_allclose(shares, [0, *[1 / 8] * 8, 0], atol=0.02)


def test_copying_without_a_gap():
    assert copying_batch(0, 0, batch_size=1, gap=0, memorized=1, vocabulary=3)["tokens"].tolist() == [[1, 2]]


@pytest.mark.parametrize("length", [2, 3, 64, 101])
def test_adding_marks_one_number_in_each_half(length: int):
    batch = adding_batch(0, 0, batch_size=200, length=length)
    numbers, marks = np.moveaxis(batch["signal"], -1, 0)
    assert batch["signal"].shape == (200, length, 2)
    assert batch["target"].shape == (200, 1)
    assert batch["signal"].dtype == batch["target"].dtype == np.float32
    assert set(np.unique(marks)) <= {0.0, 1.0}
    np.testing.assert_array_equal(marks[:, : length // 2].sum(1), 1)
    np.testing.assert_array_equal(marks[:, length // 2 :].sum(1), 1)
    np.testing.assert_allclose(batch["target"][:, 0], (numbers * marks).sum(1), rtol=1e-6)


def test_adding_statistics():
    batch = adding_batch(0, 0, batch_size=4000, length=10)
    numbers, marks = np.moveaxis(batch["signal"], -1, 0)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005
    np.testing.assert_allclose(marks.mean(0), 0.2, atol=0.03)
    assert abs(np.mean((batch["target"] - 1) ** 2) - 1 / 6) < 0.01


def test_delay_is_the_signal_shifted():
    batch = delay_batch(0, 0, batch_size=3)
    signal, target = batch["signal"], batch["target"]
    assert signal.shape == target.shape == (3, 4000, 1)
    assert signal.dtype == target.dtype == np.float32
    np.testing.assert_array_equal(target[:, :1000], 0)
    for row in range(3):
        shifted = np.corrcoef(signal[row, :-1000, 0], target[row, 1000:, 0])[0, 1]
        unshifted = np.corrcoef(signal[row, 1000:, 0], target[row, 1000:, 0])[0, 1]
        assert shifted == pytest.approx(1, abs=1e-6)
        assert abs(unshifted) < 0.2
    np.testing.assert_array_equal(signal[:, 0], 0)


@pytest.mark.parametrize(("length", "dt", "cutoff"), [(4000, 2.5e-4, 1000.0), (256, 0.01, 7.0), (128, 0.01, 50.0)])
def test_white_noise_is_flat_to_the_cutoff_and_has_its_rms(length: int, dt: float, cutoff: float):
    noise = white_noise(np.random.default_rng(0), batch_size=400, length=length, dt=dt, cutoff=cutoff, rms=0.5)
    spectrum = np.abs(np.fft.rfft(noise.astype(np.float64), axis=-1)) ** 2
    frequency = np.fft.rfftfreq(length, dt)
    beyond, within = frequency > cutoff * (1 + 1e-6), (frequency > 0) & (frequency < cutoff * (1 - 1e-6))
    power = spectrum.mean(0)
    assert power[beyond].max(initial=0) < 1e-8 * power[within].mean()
    quarters = [part.mean() for part in np.array_split(power[within], 2)]
    assert quarters[0] == pytest.approx(quarters[1], rel=0.1)
    # The shift to a start at 0 moves the mean; the deviation around it stays.
    assert np.sqrt(noise.var(1).mean()) == pytest.approx(0.5, rel=0.03)


def test_white_noise_of_an_odd_length():
    arguments = {"batch_size": 2, "dt": 0.1, "cutoff": 2.0, "rms": 1.0}
    even, odd = (white_noise(np.random.default_rng(0), length=n, **arguments) for n in (8, 7))
    np.testing.assert_array_equal(odd, even[:, :7])


@pytest.mark.parametrize(
    "task",
    [
        lambda seed, step: copying_batch(seed, step, batch_size=4),
        lambda seed, step: adding_batch(seed, step, batch_size=4, length=20),
        lambda seed, step: delay_batch(seed, step, batch_size=4, length=40, lag=4),
    ],
    ids=["copying", "adding", "delay"],
)
def test_a_batch_is_a_function_of_seed_and_step(as_a_user, task):
    first, again, next_step, next_seed = task(3, 7), task(3, 7), task(3, 8), task(4, 7)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != next_step[name]).any()
        assert (first[name] != next_seed[name]).any()
    for name, values in task(np.int64(3), np.uint8(7)).items():
        np.testing.assert_array_equal(first[name], values)
    for seed, step in ((-1, 0), (0, -1), (2**64, 0), (1.0, 0), (0, 0.5), (None, 0), ("0", 0), (True, 0), (0, [1])):
        with pytest.raises(ValueError, match=r"(seed|step) must be an int in 0 .. 2 \*\* 64 - 1, got"):
            task(seed, step)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: copying_batch(0, 0, batch_size=0), "copying_batch: batch_size"),
        (lambda: copying_batch(0, 0, batch_size=1, gap=-1), "copying_batch: gap"),
        (lambda: copying_batch(0, 0, batch_size=1, memorized=0), "copying_batch: memorized"),
        (lambda: copying_batch(0, 0, batch_size=1, vocabulary=2), "copying_batch: vocabulary"),
        (lambda: copying_batch(0, 0, batch_size=2.0), "copying_batch: batch_size"),
        (lambda: copying_batch(0, 0, batch_size=1, gap=1.5), "copying_batch: gap"),
        (lambda: copying_batch(0, 0, batch_size=1, memorized=None), "copying_batch: memorized"),
        (lambda: copying_batch(0, 0, batch_size=1, vocabulary=8.0), "copying_batch: vocabulary"),
        (lambda: adding_batch(0, 0, batch_size=1, length=1), "adding_batch: length"),
        (lambda: adding_batch(0, 0, batch_size=1, length=8.0), "adding_batch: length"),
        (lambda: adding_batch(0, 0, batch_size=0, length=8), "adding_batch: batch_size"),
        (lambda: adding_batch(0, 0, batch_size="1", length=8), "adding_batch: batch_size"),
        (lambda: delay_batch(0, 0, batch_size=1, lag=0), "delay_batch: lag"),
        (lambda: delay_batch(0, 0, batch_size=1, length=100, lag=100), "delay_batch: lag"),
        (lambda: delay_batch(0, 0, batch_size=1, lag=2.0), "delay_batch: lag"),
        (lambda: delay_batch(0, 0, batch_size=True), "delay_batch: batch_size"),
        (lambda: delay_batch(0, 0, batch_size=1, length=1), "delay_batch: length"),
        (lambda: delay_batch(0, 0, batch_size=1, dt=0.0), "white_noise: dt"),
        (lambda: delay_batch(0, 0, batch_size=1, dt="1"), "white_noise: dt"),
        (lambda: delay_batch(0, 0, batch_size=1, rms=float("nan")), "white_noise: rms"),
        (lambda: delay_batch(0, 0, batch_size=1, cutoff=float("inf")), "white_noise: cutoff"),
        (lambda: delay_batch(0, 0, batch_size=1, cutoff=[1.0]), "white_noise: cutoff"),
        (lambda: delay_batch(0, 0, batch_size=1, rms=-1.0), "white_noise: rms"),
        (lambda: delay_batch(0, 0, batch_size=1, cutoff=0.5), "white_noise: cutoff"),
        (lambda: delay_batch(0, 0, batch_size=1, cutoff=2001.0), "white_noise: cutoff"),
        (lambda: white_noise(0, batch_size=1, length=8, dt=0.1, cutoff=2.0, rms=1.0), "white_noise: rng"),
        (lambda: white_noise(RNG, batch_size=0, length=8, dt=0.1, cutoff=2.0, rms=1.0), "white_noise: batch_size"),
        (lambda: white_noise(RNG, batch_size=1, length=0, dt=0.1, cutoff=2.0, rms=1.0), "white_noise: length"),
        (lambda: touch_tones(0, seed=0), "touch_tones: count"),
        (lambda: touch_tones(2.0, seed=0), "touch_tones: count"),
        (lambda: touch_tones(1, seed=-1), "touch_tones: seed"),
        (lambda: touch_tones(1, seed=0.5), "touch_tones: seed"),
        (lambda: touch_tones(1, seed=0, length=1), "touch_tones: length"),
        (lambda: touch_tones(1, seed=0, noise=-1), "touch_tones: noise"),
        (lambda: touch_tones(1, seed=0, noise=float("nan")), "touch_tones: noise"),
        (lambda: touch_tones(1, seed=0, noise=None), "touch_tones: noise"),
    ],
)
def test_bad_arguments(as_a_user, call, message: str):
    with pytest.raises(ValueError, match=f"{message} must be"):
        call()
