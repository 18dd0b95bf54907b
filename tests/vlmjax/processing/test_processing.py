"""Image processing beside the dumps: packing, placeholders, chats, and one clear error for bad input."""

import io

import numpy as np
import pytest
from PIL import Image

from vlmjax import processing


def picture(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def test_files_bytes_and_arrays_are_one_image(tmp_path):
    image = picture(9, 7)
    (tmp_path / "image.png").write_bytes(encoded(image))
    for source in (tmp_path / "image.png", str(tmp_path / "image.png"), encoded(image), Image.fromarray(image), image):
        np.testing.assert_array_equal(processing.read_image(source), image)
    with pytest.raises(FileNotFoundError):
        processing.read_image(tmp_path / "other.png")


def test_what_is_transparent_is_white():
    image = Image.fromarray(np.full((2, 2, 4), (0, 0, 0, 0), np.uint8), "RGBA")
    np.testing.assert_array_equal(processing.read_image(image), np.full((2, 2, 3), 255))


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"no image", lambda d: b""])
def test_a_damaged_image_is_one_error(damage):
    with pytest.raises(ValueError, match="cannot be read as an image"):
        processing.read_image(damage(encoded(picture(64, 64), "JPEG")))


def test_an_extreme_aspect_is_refused():
    assert processing.smart_resize(10, 2000) == (28, 812)  # a side that rounds to none, so the area grows
    with pytest.raises(ValueError, match="at most 200 times"):
        processing.smart_resize(10, 2001)
    with pytest.raises(ValueError, match="at most 200 times"):
        processing.image_patches(picture(1, 201))


def test_a_video_repeats_its_last_frame():
    video = np.stack([picture(56, 56, seed) for seed in range(3)])
    patches, grid = processing.image_patches(video)
    longer, _ = processing.image_patches(np.concatenate([video, video[-1:]]))
    assert grid == (2, 4, 4)
    np.testing.assert_array_equal(patches, longer)
    still, grid = processing.image_patches(video[0])
    assert grid == (1, 4, 4)
    np.testing.assert_array_equal(still[:, :196], patches[:16, :196])


def test_packing_keeps_order_and_places():
    images = [processing.image_patches(picture(rows, columns)) for rows, columns in ((56, 84), (84, 56), (56, 112))]
    packed = processing.pack_patches(images, separate=False)
    assert packed.patches.shape == (1, 80, 1176) and packed.lengths.tolist() == [80] and packed.count == 20
    assert np.bincount(packed.segments[0]).tolist() == [24, 24, 32]
    np.testing.assert_array_equal(packed.patches[0], np.concatenate([patches for patches, _ in images]))
    assert packed.places[0, :8].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert packed.offsets[:7].tolist() == [[0, y, x] for y in range(2) for x in range(3)] + [[0, 0, 0]]
    assert packed.extents[packed.extents.any(1)].tolist() == [[1, 2, 3], [1, 3, 2], [1, 2, 4]]
    apart = processing.pack_patches(images, separate=True)
    assert apart.patches.shape == (3, 64, 1176) and apart.segments is None and apart.lengths.tolist() == [24, 24, 32]
    np.testing.assert_array_equal(apart.offsets[:20], packed.offsets)


def test_packing_refuses_what_does_not_fit():
    image = processing.image_patches(picture(56, 84))
    with pytest.raises(ValueError, match="length must be at least 24"):
        processing.pack_patches([image], length=16)
    with pytest.raises(ValueError, match="slices, rows and columns of 24 patches"):
        processing.pack_patches([(image[0], (1, 4, 4))])
    with pytest.raises(ValueError, match="one image or more"):
        processing.pack_patches([])


def test_buckets_waste_an_eighth_at_most():
    for n in range(512, 5000, 37):
        assert n <= processing.bucket_length(n) <= 1.125 * n + 1
    assert [processing.bucket_length(n, least=1) for n in (1, 2, 7, 16, 17)] == [1, 2, 7, 16, 18]


def test_placeholders():
    tokens = processing.expand_placeholders([5, 7, 6, 8], (7, 8), [2, 3])
    assert tokens.tolist() == [5, 7, 7, 6, 8, 8, 8]
    with pytest.raises(ValueError, match="a placeholder for each of the 1 images"):
        processing.expand_placeholders([5, 7, 7], 7, [2])


def test_chats_of_several_turns_are_the_first_turn_and_the_next():
    for chat in processing.CHATS.values():
        whole = chat.prompt("Why?", images=1, turns=[("What?", "That.")])
        assert whole == chat.prompt("What?", images=1) + "That." + chat.end + chat.turn("Why?")
    text = processing.CHATS["qwen2_vl"].prompt("What?", images=1)
    assert text.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    )
    assert text.endswith("<|image_pad|><|vision_end|>What?<|im_end|>\n<|im_start|>assistant\n")


def test_the_middle_and_the_square():
    image = picture(5, 8)
    np.testing.assert_array_equal(processing.center_crop(image, 2, 3), image[1:3, 2:5])
    square = processing.pad_to_square(image, (1, 2, 3))
    np.testing.assert_array_equal(square[1:6], image)
    assert (square[[0, 6, 7]] == [1, 2, 3]).all()


def test_padding_has_the_mean_color_cut_to_whole_numbers():
    image = picture(2, 4)
    mean = (0.5, 0.25, 0.999)
    fitted = processing.fit_image(image, 4, fit="pad", mean=mean, std=(1.0, 1.0, 1.0))
    np.testing.assert_allclose(fitted[0, 0], np.array([127, 63, 254]) / 255 - mean, atol=1e-6)
    np.testing.assert_allclose(fitted[1:3], image / 255 - mean, atol=1e-6)


def test_crops_of_an_image_that_does_not_fill_its_size():
    """Of (10, 21) into (16, 32): the width is filled, the height is 15.2, rounded up to 16."""
    image = np.full((10, 21, 3), 255, np.uint8)
    crops = processing.anyres_crops(image, [(16, 32), (32, 16)], 16, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert crops.shape == (3, 16, 16, 3) and (crops == 1).all()
    tall = processing.anyres_crops(image[:8], [(16, 32), (32, 16)], 16, mean=(0.0,) * 3, std=(1.0,) * 3)
    rows = tall[1, :, 0, 0]  # 8 * 32 / 21 = 12.2: 13 rows of white from the second on
    assert rows.tolist() == [0, *[1] * 13, 0, 0]
