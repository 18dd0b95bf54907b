"""Padding of a text with pictures: what is in it changes nothing, and a padded row is the prompt alone."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vlmjax
from tests.layers import quick
from vlmjax.layers import Merger
from vlmjax.ops import density_anchors


@pytest.fixture(scope="module")
def model():
    return vlmjax.create_model("llava_nano", vision={"depth": 1, "img_size": 8}, text={"depth": 2}, layers=(-1,))


def prompts(model, m):
    """Two prompts with a picture of `m` tokens each, of different lengths, and their batch padded on the left."""
    image = model.config.image_token
    rows = [[5, *[image] * m, 7, 8, 9], [*[image] * m, 3]]
    length = max(map(len, rows))
    tokens = np.array([[0] * (length - len(row)) + row for row in rows])
    mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)), jnp.float32)
    return rows, jnp.asarray(tokens), jnp.asarray(mask), images


@pytest.mark.parametrize("m", [None, 2])
def test_a_padded_row_is_the_prompt_alone(model, m):
    merge = None if m is None else lambda x: density_anchors(x, m)
    rows, tokens, mask, images = prompts(model, 4 if m is None else m)

    def together_and_alone(model, tokens, images, mask, rows):
        batch = model(tokens, images=images, mask=mask, merge=merge)
        return batch, [model(row, images=images[i : i + 1], merge=merge) for i, row in enumerate(rows)]

    batch, singly = quick.run(together_and_alone, model, tokens, images, mask, [jnp.array([row]) for row in rows])
    for i, (row, alone) in enumerate(zip(rows, singly, strict=True)):
        np.testing.assert_allclose(batch[i, -len(row) :], alone[0], atol=1e-5)


def test_garbage_in_padding_changes_no_bit(model):
    _, tokens, mask, images = prompts(model, 4)
    definition, state = nnx.split(model)
    broken = nnx.merge(definition, state)
    broken.language.embedding[...] = model.language.embedding[...].at[0].set(jnp.nan)
    run = quick.jit(lambda state, tokens: nnx.merge(definition, state)(tokens, images=images, mask=mask))
    clean = run(state, tokens)
    for other in (run(state, jnp.where(mask, tokens, 11)), run(nnx.state(broken), tokens)):
        np.testing.assert_array_equal(np.asarray(clean)[np.asarray(mask)], np.asarray(other)[np.asarray(mask)])


def test_the_last_norm_of_the_tower_is_read_where_it_is_asked_for():
    model = vlmjax.create_model("llava_scenes", vision={"depth": 1, "img_size": 8}, text={"depth": 1})
    tokens = model.visual_tokens(jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 8, 3)), jnp.float32))
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.std(-1), 1, atol=1e-3)
    with pytest.raises(ValueError, match="layers.*final_norm"):
        vlmjax.create_model("llava_scenes", layers=(-2,))


def test_a_merger_is_saved_and_what_is_damaged_is_refused(tmp_path):
    merger = quick.made(lambda: Merger(8, grid=(2, 3), hidden=4, adapt=True, rngs=nnx.Rngs(0)))
    merger.adapter.down.kernel[...] = jnp.ones((4, 8))
    vlmjax.save_merger(merger, tmp_path / "merger")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 8)), jnp.float32)
    again, tokens = (
        quick.run(lambda m, x: m(x, 3).tokens, m, x) for m in (vlmjax.load_merger(tmp_path / "merger"), merger)
    )
    np.testing.assert_array_equal(again, tokens)
    assert not np.array_equal(tokens, quick.jit(lambda x: density_anchors(x, 3).tokens)(x))
    weights = tmp_path / "merger" / "merger.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged"):
        vlmjax.load_merger(tmp_path / "merger")
    (tmp_path / "merger" / "merger.json").write_text('{"grid": [2, 3]}')
    with pytest.raises(ValueError, match="merger.json"):
        vlmjax.load_merger(tmp_path / "merger")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="a folder of its own"):
        vlmjax.save_merger(merger, tmp_path / "other")
