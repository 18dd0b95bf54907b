"""Fewer visual tokens in Qwen2-VL: behind the tower and inside it, with the positions that anchors and text keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
import vlmjax
from tests.vlmjax.models.test_qwen2_vl import IMAGE, SMALL, VIDEO, picture
from vlmjax.ops import density_anchors
from vlmjax.processing import image_patches, pack_patches


@pytest.fixture(scope="module")
def model():
    small = {**SMALL, "text": {**SMALL["text"], "rope_sections": (2, 1, 1)}}
    return vlmjax.create_model("qwen2_vl_nano", **small, image_token=IMAGE, video_token=VIDEO)


def fewer(m):
    return jax.jit(functools.partial(density_anchors, m=m))


ALL, HALF, TWO = jax.jit(lambda x: density_anchors(x, x.shape[1])), lambda x: fewer(x.shape[1] // 2)(x), fewer(2)
RAGGED = [picture(56, 84), picture(84, 84, 1), picture(56, 56, 2)]  # 6, 9 and 4 visual tokens
EQUAL = [picture(56, 84), picture(56, 84, 1)]


def prompt(*counts, token=IMAGE):
    """A text with images of so many visual tokens."""
    row = [1]
    for i, count in enumerate(counts):
        row += [*[token] * count, 2 + i, 7]
    return np.array([row])


@pytest.mark.parametrize(("images", "options"), [(RAGGED, {}), (EQUAL, {}), (EQUAL, {"inside": 1})])
def test_a_budget_of_all_changes_nothing(model, images, options):
    packed = pack_patches(images)
    tokens = prompt(*(len(patches) // 4 for patches, _ in images))
    merged = model.encode(packed, merge=ALL, **options)
    assert merged.count == packed.count
    np.testing.assert_allclose(model(tokens, visual=merged), model(tokens, images=packed), atol=1e-5)


@pytest.mark.parametrize(("images", "inside", "counts"), [(RAGGED, None, (3, 4, 2)), (EQUAL, 1, (3, 3))])
def test_mass_and_positions(model, images, inside, counts):
    packed = pack_patches(images)
    merged = model.encode(packed, merge=HALF, inside=inside)
    whole = model.encode(packed)
    assert merged.count == sum(counts)
    start, first = 0, 0
    for (patches, _), count in zip(images, counts, strict=True):
        here, n = slice(start, start + count), len(patches) // 4
        np.testing.assert_allclose(merged.size[here].sum(), n, atol=1e-6)
        offsets = [tuple(row) for row in np.asarray(merged.offsets[here]).tolist()]
        known = [tuple(row) for row in np.asarray(whole.offsets)[first : first + n].tolist()]
        assert [known.index(each) for each in offsets] == sorted(map(known.index, offsets))
        start, first = start + count, first + n
    # What is text stands where it stands without a merge, and so does what is generated.
    tokens, long = prompt(*counts), prompt(*(len(patches) // 4 for patches, _ in images))
    short, full = (np.asarray(model.positions(t, v)) for t, v in ((tokens, merged), (long, whole)))
    np.testing.assert_array_equal(short[tokens != IMAGE], full[long != IMAGE])
    assert model._placed(tokens, merged, None)[1] == model._placed(long, whole, None)[1]


@pytest.mark.slow
def test_a_video_merges_across_its_slices_or_within_them(model):
    video = np.random.default_rng(0).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    packed = pack_patches([image_patches(video)])  # two slices of 2 by 3 visual tokens
    tokens = prompt(4, token=VIDEO)
    behind, inside = model.encode(packed, merge=fewer(4)), model.encode(packed, merge=TWO, inside=1)
    assert behind.count == inside.count == 4
    assert np.asarray(inside.offsets)[:, 0].tolist() == [0, 0, 1, 1]
    for visual in (behind, inside):
        np.testing.assert_allclose(visual.size.sum(), 12)
        after = np.asarray(model.positions(tokens, visual))[0, -1]
        assert after.tolist() == [1 + 3 + 1] * 3  # behind the 3 columns of the whole video
        assert np.isfinite(model(tokens, visual=visual)).all()


def test_equal_cells_merged_are_as_before(model):
    """Inside the tower, and where rotary positions do not tell them apart: one cell twice is one cell of size two."""
    patches = np.tile(np.random.default_rng(0).standard_normal((4, 1176)).astype(np.float32), (2, 1))
    packed = pack_patches([(patches, (1, 2, 4))], length=-1, separate=True)
    packed = packed._replace(places=packed.places % 2)  # both cells stand in the same place
    whole = model.encode(packed).tokens
    np.testing.assert_allclose(whole[0], whole[1], atol=1e-6)
    merged = model.encode(packed, merge=fewer(1), inside=1)
    assert merged.size.tolist() == [2.0]
    np.testing.assert_allclose(merged.tokens[0], whole[0], atol=1e-5)


@pytest.mark.slow
def test_decoding_with_a_cache_is_the_whole_text(model):
    merged = model.encode(pack_patches(RAGGED), merge=HALF)
    tokens = prompt(3, 4, 2)
    new, logits = ssmjax.generate(model, tokens, max_new_tokens=4, visual=merged, return_logits=True)
    whole = model(np.concatenate([tokens, new[:, :3]], axis=1), visual=merged)
    np.testing.assert_allclose(logits[0], whole[0, -4:], atol=1e-5)
    # A row that is padded on the left is the prompt alone, and the room for visual tokens does not matter.
    padded = np.pad(tokens, ((0, 0), (3, 0)), constant_values=9)
    again = ssmjax.generate(
        model, padded, max_new_tokens=4, visual=merged.fitted(40), attention_mask=np.arange(padded.size)[None] > 2
    )
    np.testing.assert_array_equal(again, new)


@pytest.mark.slow
def test_a_merger_of_the_towers_width(model):
    merger = vlmjax.layers.Merger(4 * 16, rngs=nnx.Rngs(0))
    found = model.encode(pack_patches(EQUAL), merge=functools.partial(merger, m=2), inside=1)
    plain = model.encode(pack_patches(EQUAL), merge=TWO, inside=1)
    np.testing.assert_allclose(found.tokens, plain.tokens, atol=1e-5)  # untrained it is density anchors


def test_wrong_calls_are_one_error_each(model):
    packed = pack_patches(RAGGED)
    with pytest.raises(ValueError, match="m must be a budget from 1 to the 6 tokens, got 7"):
        model.encode(packed, merge=fewer(7))
    with pytest.raises(ValueError, match="m must be a budget from 1 to the 6 tokens, got 0"):
        model.encode(packed, merge=fewer(0))
    with pytest.raises(ValueError, match="images must be frames of one size"):
        model.encode(packed, merge=TWO, inside=1)
    with pytest.raises(ValueError, match="images must be frames of one size"):
        model.encode(pack_patches(RAGGED, separate=True), merge=TWO, inside=1)
    with pytest.raises(ValueError, match="inside must be"):
        model.encode(pack_patches(EQUAL), merge=TWO, inside=2)
    with pytest.raises(ValueError, match="merge must be a function"):
        model.encode(pack_patches(EQUAL), inside=1)
    with pytest.raises(ValueError, match="a text with 6 image tokens, got '5 image tokens"):
        model(prompt(5), visual=model.encode(packed, merge=TWO))
    with pytest.raises(ValueError, match=r"before jax\.jit"):
        jax.jit(lambda p: model.encode(p, merge=TWO).tokens)(jax.tree.map(jnp.asarray, packed))
