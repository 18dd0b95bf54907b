"""TrivialAugment's operations against Pillow and numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ssmjax.data.trivial_augment import OPERATIONS, apply_operations, trivial_augment


@pytest.fixture(scope="module")
def pictures():
    """uint8 images without extreme values, three channels, odd sizes."""
    return np.random.default_rng(0).integers(20, 230, (5, 11, 9, 3), np.uint8)


_operations = jax.jit(apply_operations)


def _apply(pictures, operation, strength):
    images = pictures.astype(np.float32) / 255
    index = np.full(len(images), OPERATIONS.index(operation), np.int32)
    return np.asarray(_operations(images, index, np.full(len(images), strength, np.float32)))


def _with_pillow(pictures, change):
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures]) / 255


def test_identity_is_exact(pictures):
    np.testing.assert_array_equal(_apply(pictures, "identity", 0.7), pictures.astype(np.float32) / 255)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in ("solarize", "autocontrast")])
def test_strength_zero_is_the_identity(operation, pictures):
    np.testing.assert_allclose(_apply(pictures, operation, 0.0), pictures / 255, atol=1e-6)


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.4, 1.0])
@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("color", ImageEnhance.Color),
        ("contrast", ImageEnhance.Contrast),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_blends_agree_with_pillow(operation, enhancer, strength, pictures):
    wanted = _with_pillow(pictures, lambda image: enhancer(image).enhance(1 + 0.99 * strength))
    # Pillow rounds the reference and the result to whole levels.
    np.testing.assert_allclose(_apply(pictures, operation, strength), wanted, atol=2.5 / 255)


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_posterize_agrees_with_pillow(bits, pictures):
    wanted = _with_pillow(pictures, lambda image: ImageOps.posterize(image, bits))
    np.testing.assert_allclose(_apply(pictures, "posterize", (8 - bits) / 6), wanted, atol=1e-5)


@pytest.mark.parametrize("strength", [0.3, -0.3, 1.0])
def test_solarize_agrees_with_pillow(strength, pictures):
    wanted = _with_pillow(pictures, lambda image: ImageOps.solarize(image, 255 * (1 - abs(strength))))
    np.testing.assert_allclose(_apply(pictures, "solarize", strength), wanted, atol=1e-5)


def test_autocontrast_agrees_with_pillow(pictures):
    wanted = _with_pillow(pictures, ImageOps.autocontrast)
    np.testing.assert_allclose(_apply(pictures, "autocontrast", 0.5), wanted, atol=1.5 / 255)
    flat = np.full((1, 4, 4, 3), 77, np.uint8)
    np.testing.assert_allclose(_apply(flat, "autocontrast", 0.5), flat / 255, atol=1e-6)


def test_translations_are_shifts(pictures):
    images = pictures.astype(np.float32) / 255
    # Half of 11 rows is 5.5 pixels, of 9 columns 4.5: 0.4 of it rounds to 2 and to 2.
    down, right = np.zeros_like(images), np.zeros_like(images)
    down[:, 2:], right[:, :, 2:] = images[:, :-2], images[:, :, :-2]
    np.testing.assert_array_equal(_apply(pictures, "translate_y", -0.4), down)
    np.testing.assert_array_equal(_apply(pictures, "translate_x", -0.4), right)
    up = np.zeros_like(images)
    up[:, :-2] = images[:, 2:]
    np.testing.assert_array_equal(_apply(pictures, "translate_y", 0.4), up)


@pytest.mark.parametrize("sign", [-1, 1])
def test_rotation_by_a_quarter_turn(sign, pictures):
    square = pictures[:, :9]
    turned = np.rot90(square, sign, axes=(1, 2)) / np.float32(255)
    np.testing.assert_allclose(_apply(square, "rotate", sign * 90 / 135), turned, atol=1e-6)


@pytest.mark.parametrize(("operation", "strength"), [("shear_x", 0.6), ("shear_y", -0.8), ("rotate", 0.21)])
def test_affine_maps_agree_with_pillow(operation, strength, pictures):
    rows, columns = pictures.shape[1:3]
    angle = strength * np.deg2rad(135)
    matrix = {
        "shear_x": [[1, 0.99 * strength], [0, 1]],
        "shear_y": [[1, 0], [0.99 * strength, 1]],
        "rotate": [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]],
    }[operation]
    center = np.array([columns, rows]) / 2
    offset = center - np.array(matrix) @ center
    coefficients = [*matrix[0], offset[0], *matrix[1], offset[1]]
    wanted = _with_pillow(pictures, lambda image: image.transform(image.size, Image.Transform.AFFINE, coefficients))
    different = np.abs(_apply(pictures, operation, strength) - wanted).max(-1) > 1e-5
    # Nearest neighbors may differ where a coordinate lies half way between two pixels.
    assert different.mean() < 0.03


def test_images_are_independent(pictures):
    images = pictures.astype(np.float32) / 255
    operation = np.array(
        [OPERATIONS.index(n) for n in ("rotate", "color", "identity", "solarize", "shear_x")], np.int32
    )
    strength = np.linspace(-0.9, 0.8, 5).astype(np.float32)
    together = _operations(images, operation, strength)
    for i in range(5):
        alone = _operations(images[i : i + 1], operation[i : i + 1], strength[i : i + 1])
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8, 8, 3), (3, 28, 28, 1), (1, 2, 2, 3), (1, 1, 1, 1)])
def test_trivial_augment_keeps_shape_and_range(shape, key):
    images = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    changed = jax.jit(trivial_augment)(key, images)
    chex.assert_type(changed, jnp.float32)
    chex.assert_shape(changed, shape)
    chex.assert_tree_all_finite(changed)
    assert 0 <= float(changed.min()) and float(changed.max()) <= 1


def test_the_same_key_gives_the_same_images_with_and_without_jit(pictures):
    images = pictures.astype(np.float32) / 255
    jitted = jax.jit(trivial_augment)(jax.random.key(5), images)
    chex.assert_trees_all_close(jitted, trivial_augment(jax.random.key(5), images), atol=1e-5)


def test_every_operation_is_drawn(key):
    image = jnp.asarray(np.random.default_rng(2).uniform(0.2, 0.8, (1, 8, 8, 3)), jnp.float32)
    changed = jax.jit(trivial_augment)(key, jnp.tile(image, (300, 1, 1, 1)))
    same = np.asarray((jnp.abs(changed - image) < 1e-6).all((1, 2, 3)))
    # The identity, and draws too weak to matter (posterize to 8 bits, a shift of no pixel, solarize of nothing).
    assert 1 / 13 * 0.5 < same.mean() < 0.35
    assert len({np.asarray(c).tobytes() for c in changed}) > 150
