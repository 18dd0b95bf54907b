"""Sequences: pixels in their order, a permutation that never changes, arrays that fit one another."""

import chex
import jax
import numpy as np
import pytest

from ssmjax.data import (
    ArrayBatches,
    eval_array_batches,
    fixed_permutation,
    load_images,
    pixel_sequences,
    sequence_data,
)
from ssmjax.data.synthetic import TOUCH_TONES, touch_tones

ROWS = {"inputs": np.arange(46, dtype=np.uint8).reshape(23, 2), "label": np.arange(23, dtype=np.int32)}


def _split(count=3, length=4, **arrays):
    return {"inputs": np.zeros((count, length, 1)), "label": np.zeros(count, np.int64), **arrays}


def test_pixels_are_read_row_by_row():
    images = load_images("digits")
    data = pixel_sequences(images)
    chex.assert_shape([data.train["inputs"], data.test["inputs"]], [(1438, 64, 1), (359, 64, 1)])
    np.testing.assert_array_equal(data.train["inputs"][5, 8 * 3 + 2], images.train_images[5, 3, 2])
    assert data.train["inputs"].dtype == np.uint8 and data.train["label"].dtype == np.int32
    assert (data.length, data.num_classes, data.name) == (64, 10, "sequential digits")


def test_the_permutation_is_one_for_all_images_and_pinned():
    plain, permuted = (pixel_sequences(load_images("digits"), permuted=p) for p in (False, True))
    order = fixed_permutation(64)
    assert sorted(order.tolist()) == list(range(64))
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(permuted, split)["inputs"], getattr(plain, split)["inputs"][:, order])
    assert plain.checksum != permuted.checksum
    # A change of this order would make results of another version incomparable.
    assert fixed_permutation(784)[:5].tolist() == PINNED


PINNED = [162, 670, 664, 185, 322]


def test_the_checksum_covers_every_array():
    def checksum(**changed):
        return sequence_data("x", {**_split(), **changed}, _split(), ("a",), source="test").checksum

    other = np.zeros((3, 4, 1))
    other[2, 3, 0] = 1
    assert len({checksum(), checksum(inputs=other), checksum(label=np.array([0, 0, 1]))}) == 3
    assert checksum() == checksum(inputs=np.zeros((3, 4, 1)))


@pytest.mark.parametrize(
    "train",
    [
        {"inputs": np.zeros((3, 4, 1))},
        _split(lengths=np.ones(3)),
        {**_split(), "label": np.zeros(2)},
        _split(extra=np.zeros(3)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(train):
    with pytest.raises(ValueError, match="sequence_data: train must be the arrays inputs and label"):
        sequence_data("x", train, _split(), ("a",), source="test")


def test_the_first_examples_keep_the_checksum():
    data = sequence_data("x", _split(lengths=np.ones(3)), _split(2, lengths=np.ones(2)), ("a",), source="test")
    few = data.first(2)
    assert few.checksum == data.checksum
    chex.assert_shape([few.train["inputs"], few.train["lengths"], few.test["label"]], [(2, 4, 1), (2,), (2,)])


def test_batches_on_the_device_are_those_on_the_host():
    host, device = (ArrayBatches(ROWS, 5, seed=3, on_device=on) for on in (False, True))
    for step in (0, 7, 3):
        got = device.at(step)
        assert all(isinstance(array, jax.Array) for array in got.values())
        chex.assert_trees_all_equal(jax.device_get(got), host.at(step))
        np.testing.assert_array_equal(got["inputs"][:, 0], 2 * got["label"])


def test_evaluation_sees_every_row_once():
    batches = list(eval_array_batches(ROWS, 5))
    seen = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(seen, ROWS["label"])
    assert {batch["inputs"].shape for batch in batches} == {(5, 2)}
    assert not batches[-1]["inputs"][3:].any()


def test_bad_arrays_are_refused():
    with pytest.raises(ValueError, match="ArrayBatches: arrays must be one or more arrays of the same positive length"):
        ArrayBatches({"inputs": np.zeros(3), "label": np.zeros(2)}, 1, seed=0)
    with pytest.raises(ValueError, match="eval_array_batches: batch_size must be positive"):
        eval_array_batches(ROWS, 0)


def test_touch_tones_have_the_frequencies_of_their_digits():
    waves, lengths, digits = touch_tones(40, seed=1, length=4000, noise=0.05)
    chex.assert_shape([waves, lengths, digits], [(40, 4000, 1), (40,), (40,)])
    for wave, length, digit in zip(waves[..., 0], lengths, digits, strict=True):
        assert not wave[length:].any()
        power = np.abs(np.fft.rfft(wave[:2000].astype(float)))
        frequencies = np.fft.rfftfreq(2000, 1 / 8000)
        for band, wanted in zip(((600, 1000), (1100, 1600)), TOUCH_TONES[digit], strict=True):
            inside = (frequencies >= band[0]) & (frequencies <= band[1])
            assert abs(frequencies[inside][power[inside].argmax()] - wanted) < 10


def test_touch_tones_are_a_function_of_the_seed():
    chex.assert_trees_all_equal(touch_tones(3, seed=5), touch_tones(3, seed=5))
    assert (touch_tones(3, seed=5)[0] != touch_tones(3, seed=6)[0]).any()
