"""A merger is trained for a frozen model: it starts at density anchors, learns, and leaves the model alone."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vlmjax
from tests.layers import quick
from vlmjax.layers import Merger
from vlmjax.ops import density_anchors


def test_an_untrained_merger_is_density_anchors():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 8)), jnp.float32)
    merger = quick.made(lambda: Merger(8, grid=(3, 4), rngs=nnx.Rngs(0)))
    both = quick.run(lambda merger, x: (merger(x, 5), density_anchors(x, 5)), merger, x)
    chex.assert_trees_all_close(*both, atol=1e-6)


@pytest.mark.slow
def test_training_lowers_the_divergence_and_leaves_the_model():
    model = vlmjax.create_model("llava_nano", vision={"depth": 1, "img_size": 16}, text={"depth": 1})
    n, image = model.config.tokens_per_image, model.config.image_token
    rng = np.random.default_rng(0)
    text = rng.integers(1, 20, (4, 3))
    tokens = jnp.asarray(np.concatenate([np.full((4, n), image), text], axis=1))
    batch = {
        "images": jnp.asarray(rng.standard_normal((4, 16, 16, 3)), jnp.float32),
        "tokens": tokens,
        "labels": jnp.where(tokens == image, -1, tokens),
    }
    before = nnx.state(model)
    merger, curve = vlmjax.train_merger(model, [batch], budgets=(4, 8), steps=60, learning_rate=1e-2)
    chex.assert_trees_all_equal(before, nnx.state(model))
    assert np.mean(curve["loss"][-10:]) < np.mean(curve["loss"][:10])
    assert merger(model.visual_tokens(batch["images"]), 4).tokens.shape == (4, 4, 64)


@pytest.mark.slow
def test_a_merge_of_all_tokens_changes_nothing_and_text_keeps_its_places():
    model = vlmjax.create_model("llava_nano", vision={"depth": 1, "img_size": 16}, text={"depth": 1})
    n, image = model.config.tokens_per_image, model.config.image_token
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    tokens = jnp.concatenate([jnp.array([[1, 2]]), jnp.full((1, 2 * n), image), jnp.array([[3]])], axis=1)
    whole = model(tokens, images=images)
    merged = model(tokens, images=images, merge=lambda x: density_anchors(x, n))
    np.testing.assert_allclose(merged, whole, atol=1e-5)
    short = jnp.concatenate([jnp.array([[1, 2]]), jnp.full((1, 8), image), jnp.array([[3]])], axis=1)
    from vlmjax.models.llava import merged_positions

    state = density_anchors(model.visual_tokens(images), 4)
    positions, logs = merged_positions(short == image, None, state, n)
    wanted = np.concatenate([[0, 1], 2 + state.position[0], 2 + n + state.position[1], [2 + 2 * n]])
    np.testing.assert_array_equal(positions[0], wanted)
    np.testing.assert_allclose(logs[0, 2:6], np.log(state.size[0]), atol=1e-6)


@pytest.mark.parametrize("tokens", [3, 5])
def test_a_wrong_number_of_image_tokens(tokens):
    model = vlmjax.create_model("llava_nano", vision={"depth": 1, "img_size": 8}, text={"depth": 1})
    text = jnp.full((1, tokens), model.config.image_token)
    with pytest.raises(ValueError, match=f"got '{tokens} image tokens.*Each image takes 4 of them"):
        model(text, images=jnp.ones((1, 8, 8, 3)))


def test_more_tokens_than_the_context():
    model = vlmjax.create_model("llama_nano", depth=1, max_length=8)
    with pytest.raises(ValueError, match=r"l at most max_length = 8, got \(1, 9\)"):
        model(jnp.ones((1, 9), int))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    """On any device, with its default flags: nothing in the step is a scatter."""
    model = vlmjax.create_model("llava_nano", vision={"depth": 1, "img_size": 16}, text={"depth": 1})
    n, image = model.config.tokens_per_image, model.config.image_token
    tokens = jnp.asarray(np.concatenate([np.full((4, n), image), np.arange(12).reshape(4, 3) + 1], axis=1))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 16, 16, 3)), jnp.float32)
    batch = {"images": images, "tokens": tokens, "labels": jnp.where(tokens == image, -1, tokens)}
    one, two = (nnx.state(vlmjax.train_merger(model, [batch], budgets=(2, 8), steps=3, seed=1)[0]) for _ in range(2))
    chex.assert_trees_all_equal(one, two)
