"""Augmentation against numpy: what each function does to each pixel and label."""

import dataclasses
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.data.augment import (
    AugmentConfig,
    _paste,
    augment,
    color_jitter,
    cutmix,
    mixup,
    normalize,
    random_crop,
    random_erasing,
    random_flip,
)

# Compiled: op by op, each small function would be compiled many times over.
run_crop = jax.jit(random_crop, static_argnames=("padding", "mode"))
run_jitter = jax.jit(color_jitter, static_argnames=("brightness", "contrast", "saturation"))
run_augment = jax.jit(augment, static_argnames="config")
run_cutmix = jax.jit(cutmix, static_argnames="alpha")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0.05, 0.95, (12, 9, 7, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def labels():
    return np.eye(12, dtype=np.float32)


@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_is_a_slice_of_the_padded_image(key, images, padding, mode, numpy_mode):
    cropped = np.asarray(run_crop(key, images, padding, mode))
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=numpy_mode)
    corners = set()
    for image, source in zip(cropped, padded, strict=True):
        windows = {(y, x): source[y : y + 9, x : x + 7] for y in range(2 * padding + 1) for x in range(2 * padding + 1)}
        found = [corner for corner, window in windows.items() if np.array_equal(window, image)]
        assert len(found) == 1
        corners.add(found[0])
    assert padding == 0 or len(corners) > 3


def test_crop_reaches_every_corner(key):
    x = jnp.ones((400, 3, 3, 1))
    cropped = np.asarray(run_crop(key, x, 1))
    # The number of pixels that came from outside tells the shift apart: 0, 3 or 5 of 9.
    outside = np.bincount((cropped == 0).sum((1, 2, 3)), minlength=6)
    np.testing.assert_allclose(outside[[0, 3, 5]] / 400, [1 / 9, 4 / 9, 4 / 9], atol=0.08)


def test_flip_mirrors_about_half(key, images):
    x = np.tile(images, (20, 1, 1, 1))
    flipped = np.asarray(random_flip(key, x))
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, x, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(flipped, x, strict=True)])
    assert (mirrored ^ same).all() and 0.35 < mirrored.mean() < 0.65


def test_brightness_is_one_factor_an_image(key, images):
    x = images * np.float32(0.5)
    factors = np.asarray(run_jitter(key, x, brightness=0.4)) / x
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1, :1], x.shape), rtol=1e-4)
    assert 0.6 <= factors.min() < 0.9 and 1.1 < factors.max() <= 1.4


def test_contrast_keeps_the_mean_gray_and_saturation_each_pixels(images):
    x = 0.35 + 0.3 * images
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    contrasted = run_jitter(jax.random.key(1), x, contrast=0.4)
    saturated = run_jitter(jax.random.key(2), x, saturation=0.4)
    np.testing.assert_allclose((contrasted @ weights).mean((1, 2)), (x @ weights).mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(saturated @ weights, x @ weights, rtol=1e-4)
    for changed in (contrasted, saturated):
        assert float(jnp.abs(changed - x).max()) > 0.01


def test_no_jitter_changes_nothing(key, images):
    np.testing.assert_allclose(run_jitter(key, images), images, atol=1e-6)


def test_erasing_replaces_one_rectangle_of_the_allowed_area(key):
    x = np.full((64, 20, 16, 3), 2.0, np.float32)
    erased = np.asarray(jax.jit(random_erasing)(key, x))
    changed = (erased != 2).any(-1)
    touched = changed.any((1, 2))
    assert 0.1 < touched.mean() < 0.45
    for mask, image in zip(changed[touched], erased[touched], strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        block = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert block.all() and block.sum() == mask.sum(), "not one filled rectangle"
        # Sides are rounded to pixels, hence the slack.
        assert 0.01 < mask.mean() < 0.4
        assert 0 <= image[mask].min() and image[mask].max() <= 1 and image[mask].std() > 0.1


def test_mixup_is_the_formula(key, images, labels):
    x, y = mixup(key, images, labels, 0.7)
    weight = np.asarray(y)[0, 0]
    assert 0 < weight < 1
    np.testing.assert_allclose(x, weight * images + (1 - weight) * images[::-1], rtol=1e-5)
    np.testing.assert_allclose(y, weight * labels + (1 - weight) * labels[::-1], rtol=1e-5)


def test_mixup_weights_are_beta(images, labels):
    draw = jax.jit(jax.vmap(lambda key: mixup(key, images[:2], labels[:2], 0.3)[1][0, 0]))
    weights = draw(jax.random.split(jax.random.key(1), 2000))
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    np.testing.assert_allclose(weights.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(weights.var(), 1 / (4 * 1.6), rtol=0.1)


def test_cutmix_labels_are_weighted_by_the_area(images, labels):
    areas = []
    for seed in range(20):
        x, y = run_cutmix(jax.random.key(seed), images, labels, alpha=1.0)
        own, partner = (np.asarray(x) == images).all(-1), (np.asarray(x) == images[::-1]).all(-1)
        assert (own ^ partner).all()
        assert (partner == partner[0]).all(), "one rectangle for the batch"
        rows, columns = np.flatnonzero(partner[0].any(1)), np.flatnonzero(partner[0].any(0))
        assert len(rows) * len(columns) == partner[0].sum()
        areas.append(partner[0].mean())
        np.testing.assert_allclose(y, (1 - areas[-1]) * labels + areas[-1] * labels[::-1], rtol=1e-6)
    assert min(areas) < 0.1 and max(areas) > 0.3


@pytest.mark.parametrize(
    ("center", "weight", "rows", "columns"),
    [
        ((0.5, 0.5), 0.75, (2, 6), (3, 9)),  # sides of a half: 4 of 8 and 6 of 12
        ((0.5, 0.5), 0.0, (0, 8), (0, 12)),
        ((0.5, 0.5), 1.0, (4, 4), (6, 6)),
        ((0.0, 0.99), 0.75, (0, 2), (8, 12)),  # cut off at a corner
        ((0.3, 0.6), 0.5, (0, 4), (3, 11)),  # 5.65 and 8.48, rounded down to even numbers
    ],
)
def test_the_rectangle_of_cutmix(center, weight, rows, columns):
    """The sides are sqrt(1 - weight) of the image's, about the center."""
    x, y = jnp.stack([jnp.zeros((8, 12, 1)), jnp.ones((8, 12, 1))]), jnp.eye(2)
    mixed, target = _paste(jnp.array(center), jnp.array(weight), x, y)
    wanted = np.zeros((8, 12))
    wanted[rows[0] : rows[1], columns[0] : columns[1]] = 1
    np.testing.assert_array_equal(mixed[0, ..., 0], wanted)
    np.testing.assert_allclose(target[0], [1 - wanted.mean(), wanted.mean()], rtol=1e-6)


def test_normalize_is_the_formula():
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    mean, std = np.array([0.1, 0.2, 0.3], np.float32), np.array([0.5, 0.25, 2], np.float32)
    wanted = (x / np.float64(255) - mean) / std
    np.testing.assert_allclose(normalize(x, mean, std), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalize((x / 255).astype(np.float32), mean, std), wanted, rtol=1e-5, atol=1e-6)
    low = normalize(x, mean, std, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), wanted, rtol=2**-8, atol=2**-8)


ALL = AugmentConfig(brightness=0.2, contrast=0.2, saturation=0.2, erase_probability=0.5)


@pytest.mark.parametrize(
    ("config", "channels"),
    [(AugmentConfig(), 3), (ALL, 1), (AugmentConfig.handwriting(), 1)],
    ids=["default", "all", "handwriting"],
)
def test_augment_keeps_shapes_range_and_label_mass(config, channels, images, labels):
    chosen = np.rint(images[..., :channels] * 255).astype(np.uint8)
    x, y = run_augment(jax.random.key(0), chosen, labels, config=config)
    chex.assert_shape([x, y], [chosen.shape, labels.shape])
    chex.assert_type([x, y], jnp.float32)
    chex.assert_tree_all_finite((x, y))
    assert 0 <= float(x.min()) and float(x.max()) <= 1
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
    chex.assert_trees_all_equal((x, y), run_augment(jax.random.key(0), chosen, labels, config=config))
    other, _ = run_augment(jax.random.key(1), chosen, labels, config=config)
    assert float(jnp.abs(other - x).max()) > 0.1


def test_augment_under_vmap_is_augment_of_each(images, labels):
    config = AugmentConfig(trivial=False, erase_probability=0.0, mixup_alpha=0.0, mix_probability=0.7)
    stacked = jax.jit(jax.vmap(lambda key: augment(key, images, labels, config)))(
        jax.random.split(jax.random.key(2), 3)
    )
    for i, key in enumerate(jax.random.split(jax.random.key(2), 3)):
        single = run_augment(key, images, labels, config=config)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), single, atol=1e-5)


def test_none_changes_nothing(key, images, labels):
    chex.assert_trees_all_equal(augment(key, images, labels, AugmentConfig.none()), (images, labels))


def test_mixing_happens_as_often_as_asked(images, labels):
    base = dataclasses.replace(AugmentConfig.none(), mixup_alpha=0.5, cutmix_alpha=1.0)

    def kinds(config):
        def one(key):
            x, y = augment(key, images[:2], labels[:2], config)
            mixed, pasted = y[0, 1] > 0, ((x == images[:2]) | (x == images[1::-1])).all()
            return jnp.where(mixed, jnp.where(pasted, 2, 1), 0)

        found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 1000))
        return np.bincount(found, minlength=3) / 1000

    # A cutmix rectangle may lie outside or be of no size: somewhat fewer than drawn.
    np.testing.assert_allclose(
        kinds(dataclasses.replace(base, mix_probability=0.6, cutmix_share=0.25)), [0.4, 0.45, 0.15], atol=0.06
    )
    assert kinds(dataclasses.replace(base, mix_probability=0.0))[0] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("erase_probability", 1.1),
        ("mix_probability", -0.1),
        ("brightness", float("nan")),
        ("crop_padding", -1),
        ("mixup_alpha", -1.0),
    ],
)
def test_a_bad_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"AugmentConfig: {field} must be"):
        AugmentConfig(**{field: value})


def test_bad_arguments_are_refused(key, images, labels):
    with pytest.raises(ValueError, match="padding must be zero or positive and, to reflect, below 7"):
        random_crop(key, images, 7, "reflect")
    for shape in ((1, 4, 6, 1), (1, 6, 4, 1)):  # the largest that is allowed, and the next
        assert random_crop(jax.random.key(1), jnp.ones(shape), 3, "reflect").shape == shape
        with pytest.raises(ValueError, match="to reflect, below 4"):
            random_crop(key, jnp.ones(shape), 4, "reflect")
        assert random_crop(jax.random.key(1), jnp.ones(shape), 4, "zero").shape == shape
    with pytest.raises(ValueError, match="padding must be zero or positive"):
        random_crop(key, images, -1)
    with pytest.raises(ValueError, match="mode must be 'zero' or 'reflect', got 'wrap'"):
        random_crop(key, images, 1, "wrap")
    for name, mix in (("mixup", mixup), ("cutmix", cutmix)):
        with pytest.raises(ValueError, match=f"{name}: alpha must be positive, got 0.0"):
            mix(key, images, labels, 0.0)
    # Without the run-time checks of these tests, as users call it.
    with pytest.raises(ValueError, match=r"images must be \(b y x d\), got \(9, 7, 3\).*batch axis"):
        inspect.unwrap(normalize)(images[0], np.zeros(3), np.ones(3))
