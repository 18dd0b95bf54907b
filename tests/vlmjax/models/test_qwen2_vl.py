"""Qwen2-VL beyond the dumps: padding, buckets, one compilation, several turns, and one clear error for each mistake."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
import vlmjax
from ssmjax import generation
from tests.layers import quick
from vlmjax.models.qwen2_vl import _encode
from vlmjax.processing import image_patches, pack_patches

IMAGE, VIDEO = 30, 31
SMALL = {
    "vision": {"d_model": 16, "d_out": 16, "depth": 2, "heads": 2, "d_mlp": 32},
    "text": {"vocab": 32, "d_model": 16, "depth": 2, "heads": 2, "kv_heads": 1, "d_mlp": 32, "max_length": 96},
}


@pytest.fixture(scope="module")
def model():
    small = {**SMALL, "text": {**SMALL["text"], "rope_sections": (2, 1, 1)}}
    return vlmjax.create_model("qwen2_vl_nano", **small, image_token=IMAGE, video_token=VIDEO)


def picture(rows, columns, seed=0):
    return image_patches(np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8))


PICTURES = [picture(56, 84), picture(84, 56, 1), picture(56, 56, 2)]
COUNT = 6 + 6 + 4


def with_garbage(packed, value):
    """The same with something else at padding."""
    real = np.arange(packed.patches.shape[1])[None] < packed.lengths[:, None]
    places = np.where(real[..., None], packed.places, 7)
    return packed._replace(patches=np.where(real[..., None], packed.patches, value), places=places)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("garbage", [np.nan, 1e30])
def test_padding_changes_no_bit(model, separate, garbage):
    packed = pack_patches(PICTURES, length=96, separate=separate)
    visual = model.encode(packed)
    np.testing.assert_array_equal(model.encode(with_garbage(packed, garbage)).tokens, visual.tokens)
    assert not np.asarray(visual.tokens)[COUNT:].any() and np.asarray(visual.tokens)[:COUNT].all()


def test_padding_has_no_gradient_and_hides_none(model):
    definition, state = nnx.split(model.vision)

    def loss(state, packed):
        return (nnx.merge(definition, state)(packed) ** 2).sum()

    packed = pack_patches(PICTURES, length=96)
    gradient = jax.jit(jax.grad(loss))
    clean, dirty = gradient(state, packed), gradient(state, with_garbage(packed, np.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_buckets_and_rows_agree(model):
    wanted = np.asarray(model.encode(pack_patches(PICTURES, length=-1, separate=False)).tokens)
    scale = np.abs(wanted).max()
    for options in (dict(length=96, separate=False), dict(length=64, separate=True), dict(length=-1, separate=True)):
        found = np.asarray(model.encode(pack_patches(PICTURES, **options)).tokens)[:COUNT]
        assert np.abs(found - wanted).max() <= 1e-5 * scale


def test_images_do_not_see_each_other(model):
    both = np.asarray(model.encode(pack_patches(PICTURES, length=96, separate=False)).tokens)
    alone = np.asarray(model.encode(pack_patches(PICTURES[1:2])).tokens)
    np.testing.assert_allclose(both[6:12], alone[:6], atol=1e-5 * np.abs(alone).max())


def test_the_language_model_compiles_once_whatever_the_bucket(model):
    tokens = np.array([[1, *[IMAGE] * 6, 2, 3]])
    generation._loop.clear_cache()
    _encode.clear_cache()
    found = []
    for length in (24, 64, 96):
        visual = model.encode(pack_patches(PICTURES[:1], length=length), room=tokens.size)
        found.append(ssmjax.generate(model, tokens, max_new_tokens=3, visual=visual).tolist())
    assert found[0] == found[1] == found[2]
    assert _encode._cache_size() == 3 and generation._loop._cache_size() == 1


def test_several_turns_on_one_image_are_one_conversation(model):
    visual = model.encode(pack_patches(PICTURES[:1]))
    first, second = np.array([[1, *[IMAGE] * 6, 2, 3]]), np.array([[5, 6]])

    def run(model, first, second, visual):
        whole = model(jnp.concatenate([first, second], axis=1), visual=visual)
        one, cache = model.prefill(first, model.init_cache(1, 16), visual=visual)
        return whole, one, model.prefill(second, cache)[0]

    whole, one, two = quick.run(run, model, first, second, visual)
    np.testing.assert_allclose(one, whole[:, 8], atol=1e-5)
    np.testing.assert_allclose(two, whole[:, -1], atol=1e-5)


def test_rules_of_positions(model):
    video = (np.zeros((5 * 16, 1176), np.float32), (5, 4, 4))  # five slices of two by two visual tokens
    visual = model.encode(pack_patches([video]))
    tokens = jnp.array([[1, *[VIDEO] * 20, 2]])
    for rule, after in (("span", 6), ("plane", 3)):
        model.config = dataclasses.replace(model.config, position_rule=rule)
        positions = np.asarray(model.positions(tokens, visual))[0]
        assert positions[0].tolist() == [0, 0, 0] and positions[-1].tolist() == [after] * 3
        assert positions[1:6].tolist() == [[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [2, 1, 1]]
    model.config = dataclasses.replace(model.config, position_rule="span")


def test_wrong_inputs_are_one_error_each(model):
    visual = model.encode(pack_patches(PICTURES[:1]))
    tokens = np.array([[1, *[IMAGE] * 5, 2]])
    with pytest.raises(ValueError, match=r"a text with 6 image tokens, got '5 image tokens"):
        model(tokens, visual=visual)
    with pytest.raises(ValueError, match=r"a text with 6 image tokens, got '5 image tokens"):
        ssmjax.generate(model, tokens, max_new_tokens=1, visual=visual)
    with pytest.raises(ValueError, match=r"a text with 0 image tokens, got '5 image tokens"):
        model(tokens)
    packed = pack_patches(PICTURES[:1])
    with pytest.raises(ValueError, match="one of the two"):
        model(tokens, images=packed, visual=visual)
    with pytest.raises(ValueError, match=r"patches must be \(b l 1176\)"):
        model.encode(packed._replace(patches=packed.patches[..., :100]))
    with pytest.raises(ValueError, match="at most max_length = 96"):
        ssmjax.generate(model, np.ones((1, 90), np.int32), max_new_tokens=20)


def test_a_folder_of_the_hub_both_ways(model, tmp_path):
    vlmjax.save_pretrained(model, tmp_path / "own")
    ssmjax.save_pretrained(model, tmp_path / "hub", format="hf")
    for name in ("own", "hub"):
        loaded = vlmjax.load_pretrained(tmp_path / name)
        assert loaded.config == model.config
        jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))
