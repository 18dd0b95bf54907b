"""Batches are a pure function of (seed, step)."""

import chex
import numpy as np
import pytest

from ssmjax.data import Batches, eval_batches

IMAGES = np.arange(23 * 2 * 2, dtype=np.uint8).reshape(23, 2, 2, 1)
LABELS = np.arange(23, dtype=np.int64)


def _labels(batches, epoch):
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    return np.concatenate([batches.at(step)["label"] for step in steps])


def test_a_batch_has_the_promised_arrays():
    batch = Batches(IMAGES, LABELS, 5, seed=3).at(2)
    chex.assert_shape([batch["image"], batch["label"]], [(5, 2, 2, 1), (5,)])
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"], IMAGES[batch["label"]])


def test_an_epoch_sees_every_image_at_most_once_and_leaves_out_the_rest():
    batches = Batches(IMAGES, LABELS, 5, seed=0)
    assert batches.steps_per_epoch == 4
    for epoch in range(3):
        labels = _labels(batches, epoch)
        assert len(labels) == len(set(labels.tolist())) == 20


def test_any_order_of_asking_gives_the_same_batches():
    steps = [7, 0, 19, 7, 3, 1000, 0]
    batches = Batches(IMAGES, LABELS, 5, seed=1)
    asked = [batches.at(step) for step in steps]
    for step, batch in zip(steps, asked, strict=True):
        chex.assert_trees_all_equal(batch, Batches(IMAGES, LABELS, 5, seed=1).at(step))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(_labels(Batches(IMAGES, LABELS, 23, seed=seed), epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_pinned():
    # A change of this order would break resuming runs across versions.
    np.testing.assert_array_equal(Batches(IMAGES, LABELS, 6, seed=7).at(5)["label"], [2, 5, 4, 8, 18, 0])
    assert Batches(IMAGES, LABELS, 6, seed=2**64 - 1).at(2**40)["label"].shape == (6,)


def test_every_place_is_equally_likely():
    images = np.zeros((8, 1, 1, 1), np.uint8)
    batches = Batches(images, np.arange(8), 8, seed=0)
    counts = np.zeros((8, 8))
    for epoch in range(2000):
        counts[np.arange(8), batches.at(epoch)["label"]] += 1
    # Expected 250, standard deviation 15.
    assert np.abs(counts - 250).max() < 5 * 15


def test_eval_batches_cover_everything_once_in_one_shape():
    batches = list(eval_batches(IMAGES, LABELS, 8))
    for batch in batches:
        chex.assert_shape([batch["image"], batch["label"], batch["mask"]], [(8, 2, 2, 1), (8,), (8,)])
        chex.assert_type([batch["image"], batch["label"], batch["mask"]], [np.uint8, np.int32, bool])
    image, label, mask = (np.concatenate([batch[k] for batch in batches]) for k in ("image", "label", "mask"))
    assert mask.sum() == 23 and mask[:23].all()
    np.testing.assert_array_equal(image[mask], IMAGES)
    np.testing.assert_array_equal(label[mask], LABELS)
    assert not image[~mask].any() and not label[~mask].any()


@pytest.mark.parametrize(("size", "count"), [(23, 1), (24, 1), (100, 1), (1, 23)])
def test_eval_batches_of_any_size(size, count):
    batches = list(eval_batches(IMAGES, LABELS, size))
    assert len(batches) == count and sum(batch["mask"].sum() for batch in batches) == 23


@pytest.mark.parametrize(
    ("images", "labels", "size", "message"),
    [
        (IMAGES[..., 0], LABELS, 5, r"images must be \(N y x d\) uint8, got \(23, 2, 2\)"),
        (IMAGES / np.float32(255), LABELS, 5, "images must be .* float32.*data.normalize"),
        (IMAGES, LABELS[:22], 5, "one label for each of the 23 images"),
        (IMAGES, LABELS[:, None], 5, r"labels must be \(N\) integers, got \(23, 1\)"),
        (IMAGES, LABELS.astype(np.float32), 5, "labels must be .* float32"),
        (IMAGES[:0], LABELS[:0], 5, "at least one image"),
        (IMAGES, LABELS, 0, "batch_size must be positive, got 0"),
    ],
)
def test_bad_input_is_refused_at_the_call(images, labels, size, message):
    with pytest.raises(ValueError, match=f"Batches: .*{message}"):
        Batches(images, labels, size, seed=0)
    with pytest.raises(ValueError, match=f"eval_batches: .*{message}"):
        eval_batches(images, labels, size)


def test_bad_sizes_seeds_and_steps_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at most the 23 examples"):
        Batches(IMAGES, LABELS, 24, seed=0)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed must be in 0"):
            Batches(IMAGES, LABELS, 5, seed=seed)
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        Batches(IMAGES, LABELS, 5, seed=0).at(-1)
