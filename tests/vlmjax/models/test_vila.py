"""VILA and LLaVA-NeXT: what the dumps do not say, such as jit, generation, whole models and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmjax
import vlmjax
from ssmjax.models import registry
from tests.layers import quick
from vlmjax.models import (
    IGNORE,
    VilaConfig,
    anyres_order,
    interleave,
    multiscale_tokens,
    pack,
    place,
    pool_frames,
    tile_grid,
)

TOWER = dict(img_size=8, patch_size=4, d_model=16, depth=2, heads=2, d_mlp=32)
TEXT = dict(vocab=32, d_model=16, depth=1, heads=2, d_mlp=32, max_length=64)


def tiny_vila(**changes):
    return vlmjax.create_model("vila_nano", vision=TOWER, text=TEXT, image_token=31, **changes)


def test_images_between_the_words():
    model = tiny_vila()
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), jnp.float32)
    n = model.config.tokens_per_image
    batch = interleave([[5, 31, 6, 31], [31, 7, 0, 0]], {31: [[n]] * 3}, mask=[[1, 1, 1, 1], [1, 1, 0, 0]])
    three = jnp.concatenate([images, images[:1]])

    def run(model, tokens, mask, places, images):
        options = dict(images=images, mask=mask)
        alone = model(tokens[1:, : n + 1], images=images[:1])
        return model(tokens, places=places, **options), model(tokens, **options), alone

    arrays = (jnp.asarray(x) for x in (batch.tokens, batch.mask, batch.places))
    whole, counted, alone = quick.run(run, model, *arrays, three)
    np.testing.assert_array_equal(whole, counted)
    np.testing.assert_allclose(whole[1, : n + 1], alone[0], atol=1e-5)


def test_truncation_inside_an_image_keeps_the_numbers_of_visual_tokens():
    batch = interleave([[31, 4], [5, 31]], {31: [[3], [3]]}, max_length=2, labels=[[9, 8], [7, 6]])
    assert batch.places.tolist() == [[0, 1], [-1, 3]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE], [7, IGNORE]]


def test_packed_texts_do_not_see_each_other():
    model = vlmjax.create_model("llama_nano", **TEXT)
    rows = interleave([[5, 6, 7], [8, 9, 0]], {}, mask=[[1, 1, 1], [1, 1, 0]])
    packed = pack(rows)
    options = dict(segment_ids=jnp.asarray(packed.segments), positions=jnp.asarray(packed.positions))
    y = quick.apply(model, jnp.asarray(packed.tokens), **options)
    np.testing.assert_allclose(y[0, 3:5], quick.apply(model, jnp.array([[8, 9]]))[0], atol=1e-5)


@pytest.mark.parametrize(
    ("media", "message"), [({31: [[2]]}, "media must be an image or video"), ({31: [[2]] * 3}, "more than")]
)
def test_media_must_fit_the_placeholders(media, message):
    with pytest.raises(ValueError, match=message):
        interleave([[31, 31]], media)


def test_windows_must_divide_a_video():
    with pytest.raises(ValueError, match="divisors of 3 frames of 2 x 2"):
        pool_frames(np.ones((3, 4, 1)), [(2, 1, 1)])


def test_a_value_that_is_used_nowhere_has_no_gradient():
    values = jnp.arange(6.0).reshape(3, 2)
    found = jax.grad(lambda values: place(jnp.zeros((2, 2)), values, jnp.array([2, -1])).sum())(values)
    assert found.tolist() == [[0, 0], [0, 0], [1, 1]]


def test_anyres_orders_use_each_token_once_at_most():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = tuple(rng.integers(20, 2000, 2).tolist())
        order = anyres_order([size], [tile_grid(size, 336)], 3)
        used = order[order >= 0]
        assert len(np.unique(used)) == len(used)


def test_dynamic_scales_whole():
    model = tiny_vila(scales=(8, 16), tiling="scales", scale_index=-1)
    blocks = ((1, 2), None)
    images = jnp.ones((1 + 2 + 1, 8, 8, 3))
    assert quick.run(lambda model, images: model.project(images, blocks), model, images).shape == (1, 3, 16)
    with pytest.raises(ValueError, match="n = 4, the tiles of these blocks"):
        model.project(images[:3], blocks)


def test_fixed_scales_whole():
    config = VilaConfig(vision=registry.model_config("vila_nano").vision, scales=(48, 96), scale_index=1)
    assert config.tokens_per_image == 144
    model = tiny_vila(scales=(8, 16))
    projected = quick.apply(model, jnp.ones((2, 16, 16, 3)), method="project")
    assert projected.shape == (2, model.config.tokens_per_image, 16)
    same = multiscale_tokens(lambda x: x.reshape(len(x), -1, 3), jnp.ones((1, 4, 4, 3)), (2, 4), 2, index=1)
    np.testing.assert_allclose(same, 1.0, rtol=1e-6)


def test_anyres_compiles_once_for_images_of_equal_numbers():
    model = vlmjax.create_model(
        "llava_next_nano", vision=TOWER, text=TEXT, image_token=31, pinpoints=((8, 16), (16, 8), (16, 16))
    )
    order = model.order([(8, 16)])
    tokens = jnp.concatenate([jnp.full((1, len(order)), 31), jnp.array([[1, 2]])], axis=1)
    images = jnp.ones((3, 8, 8, 3))
    new = ssmjax.generate(model, tokens, max_new_tokens=3, images=images, order=jnp.asarray(order))
    again = jnp.concatenate([tokens, new[:, :2]], axis=1)
    assert quick.apply(model, again, images=images, order=order)[0, -1].argmax() == new[0, 2]
    with pytest.raises(ValueError, match="image tokens"):
        model(tokens[:, 1:], images=images, order=order)


def test_published_sizes():
    assert VilaConfig().tokens_per_image == 196
    nvila = registry.model_config("nvila_8b")
    assert nvila.projector_width == 3456 and nvila.tokens_per_image == 256
