"""Images in class folders, on disk and in an archive."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from ssmjax.data import DataUnavailable, load_image_folders


def draw(folder, count, size=(6, 4), mode="RGB"):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), 10 * i + len(folder.name), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:02d}.png")


def test_splits_words_and_archives(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        draw(tmp_path / "set" / split / "n01" / "images", count)
        draw(tmp_path / "set" / split / "n02", count, mode="L")
    (tmp_path / "set" / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn09\tnothing\n")
    data = load_image_folders(tmp_path / "set", per_class=(3, 2))
    assert data.class_names == ("goldfish", "n02")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.image_shape == (4, 6, 3)
    assert data.train_images[1, 0, 0].tolist() == [16, 16, 16]
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    again = load_image_folders(tmp_path / "set.tar.gz", per_class=(3, 2))
    assert again.checksum == data.checksum


def test_one_level_is_split_by_share_and_brought_to_a_size(tmp_path):
    draw(tmp_path / "a", 5, size=(8, 4))
    draw(tmp_path / "b", 10, size=(3, 9))
    data = load_image_folders(tmp_path, size=5)
    assert data.image_shape == (5, 5, 3)
    assert np.bincount(data.train_labels).tolist() == [4, 8] and np.bincount(data.test_labels).tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"the images have 2 sizes. Give `size`"):
        load_image_folders(tmp_path)


def test_errors(tmp_path):
    with pytest.raises(DataUnavailable, match=r"is not there"):
        load_image_folders(tmp_path / "nowhere")
    draw(tmp_path / "one", 3)
    with pytest.raises(DataUnavailable, match=r"no classes of images"):
        load_image_folders(tmp_path)
    draw(tmp_path / "two", 3)
    (tmp_path / "two" / "00.png").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"'two/00.png' cannot be read as an image"):
        load_image_folders(tmp_path)
    with pytest.raises(ValueError, match=r"test_share must be between 0 and 1"):
        load_image_folders(tmp_path, test_share=1.0)


def test_damaged_cut_and_huge_images_are_named(tmp_path, monkeypatch):
    draw(tmp_path / "a", 3)
    draw(tmp_path / "b", 3)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "b" / "99.jpg")
    whole = (tmp_path / "b" / "99.jpg").read_bytes()
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(20), whole[:-100]):
        (tmp_path / "b" / "99.jpg").write_bytes(data)
        with pytest.raises(ValueError, match="'b/99.jpg' cannot be read as an image"):
            load_image_folders(tmp_path, size=4)
    (tmp_path / "b" / "99.jpg").write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="'b/99.jpg' cannot be read as an image .Image size"):
        load_image_folders(tmp_path, size=4)


def test_an_image_is_turned_upright(tmp_path):
    draw(tmp_path / "a", 3, size=(8, 8))
    draw(tmp_path / "b", 3, size=(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    rows = np.zeros((8, 8, 3), np.uint8)
    rows[4:] = 255
    Image.fromarray(rows).save(tmp_path / "a" / "00.png", exif=exif)
    image = load_image_folders(tmp_path).train_images[0]
    assert image[0].min() == 255 and image[-1].max() == 0
