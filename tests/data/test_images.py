"""Loading image sets: every way to have one, and every way in which one cannot be had."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest

from ssmjax.data import IMAGE_SETS, DataUnavailable, load_images, resize_images
from ssmjax.data.archives import ARCHIVES

TFDS_SETS = tuple(ARCHIVES)


def _canonical(images, labels):
    """Images and labels in an order of their own, for comparing sets."""
    order = np.lexsort(images.reshape(len(images), -1)[:, :16].T)
    return images[order], labels[order].astype(np.int32)


def test_digits_are_stratified_and_always_the_same():
    data = load_images("digits")
    chex.assert_shape([data.train_images, data.test_images], [(1438, 8, 8, 1), (359, 8, 8, 1)])
    chex.assert_shape([data.train_labels, data.test_labels], [(1438,), (359,)])
    assert data.train_images.dtype == np.uint8 and data.train_images.max() == 255
    assert data.train_labels.dtype == np.int32
    shares = np.bincount(data.test_labels) / np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    np.testing.assert_allclose(shares, 0.2, atol=0.003)
    assert data.class_names == tuple("0123456789") and data.num_classes == 10 and data.image_shape == (8, 8, 1)
    # On every version of numpy and scikit-learn: results of different machines are of the same split.
    assert data.checksum == "11fe969d7ef620296ee82b2b14ff1dfb2aae668a57ed904aa4ddf7e30ba53b84"


def test_digits_hold_scikit_learns_images():
    from sklearn.datasets import load_digits

    original = load_digits()
    data = load_images("digits")
    images = np.concatenate([data.train_images, data.test_images])
    expected = _canonical(np.rint(original.images * 255 / 16).astype(np.uint8)[..., None], original.target)
    # Some digits begin alike: compare whole images as a set.
    assert {i.tobytes() for i in images} == {i.tobytes() for i in expected[0]}
    np.testing.assert_array_equal(
        np.bincount(np.concatenate([data.train_labels, data.test_labels])), np.bincount(original.target)
    )


def test_mean_and_std_are_those_of_the_training_pixels(fake_archives, tmp_path):
    fake = fake_archives("cifar10")
    data = load_images("cifar10", data_dir=tmp_path / "data", download_dir=fake.folder)
    pixels = fake.splits["train"]["image"].astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert data.mean.dtype == data.std.dtype == np.float32


@pytest.mark.parametrize("name", TFDS_SETS)
def test_archives_are_prepared_once_and_read_back_exactly(name, fake_archives, no_network, tmp_path):
    fake = fake_archives(name)
    data = load_images(name, data_dir=tmp_path / "data", download_dir=fake.folder)
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        wanted = _canonical(fake.splits[split]["image"], fake.splits[split]["label"])
        chex.assert_trees_all_equal(_canonical(images, labels), wanted)
    shutil.rmtree(fake.folder)
    again = load_images(name, data_dir=tmp_path / "data")
    assert again.checksum == data.checksum and again.source == data.source
    assert data.num_classes == (100 if name == "cifar100" else 10)
    assert not no_network


@pytest.mark.parametrize("name", TFDS_SETS)
def test_a_prepared_folder_is_an_ordinary_tfds_folder(name, fake_archives, tmp_path):
    import tensorflow_datasets as tfds

    fake = fake_archives(name)
    data = load_images(name, data_dir=tmp_path, download_dir=fake.folder)
    builder = tfds.builder(name, data_dir=tmp_path)
    # TFDS's own class, from its own registry: ours do not take its names.
    assert type(builder).__module__.startswith("tensorflow_datasets.")
    assert set(builder.info.features) == {"image", "label"} | ({"id"} if name.startswith("cifar") else set()) | (
        {"coarse_label"} if name == "cifar100" else set()
    )
    assert tuple(builder.info.features["label"].names) == data.class_names
    source = builder.as_data_source("train")
    assert len(source) == len(data.train_images)
    for i in (0, 7):
        np.testing.assert_array_equal(source[i]["image"], data.train_images[i])
        assert source[i]["label"] == data.train_labels[i]
        if name.startswith("cifar"):
            index = int(source[i]["id"].decode().removeprefix("train_"))
            np.testing.assert_array_equal(source[i]["image"], fake.splits["train"]["image"][index])
        if name == "cifar100":
            assert source[i]["coarse_label"] == fake.splits["train"]["coarse_label"][index]


def test_archives_may_lie_in_a_folder_of_the_sets_name(fake_archives, tmp_path):
    mnist, fashion = fake_archives("mnist"), fake_archives("fashion_mnist", seed=1)
    both = tmp_path / "downloads"
    for fake in (mnist, fashion):
        shutil.copytree(fake.folder, both / fake.name)
    for fake in (mnist, fashion):
        data = load_images(fake.name, data_dir=tmp_path / "data", download_dir=both)
        assert set(map(bytes, data.test_images)) == set(map(bytes, fake.splits["test"]["image"]))


def test_the_default_folder_is_that_of_tfds(fake_archives, tmp_path, monkeypatch):
    fake = fake_archives("mnist")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    data = load_images("mnist", download_dir=fake.folder)
    assert str(tmp_path / "data") in data.source
    assert load_images("mnist").checksum == data.checksum


@pytest.mark.parametrize("name", TFDS_SETS)
def test_published_hashes_are_those_of_tfds(name):
    import tensorflow_datasets as tfds

    table = Path(tfds.__file__).parent / "url_checksums" / f"{name}.txt"
    published = {tuple(line.split()[i] for i in (0, 2)) for line in table.read_text().splitlines()}
    assert {(archive.url, archive.sha256) for archive in ARCHIVES[name].archives} == published


def test_without_network_and_data_one_message_says_everything(no_network, tmp_path):
    with pytest.raises(DataUnavailable) as caught:
        load_images("cifar10", data_dir=tmp_path / "data", download_dir=tmp_path / "archives")
    message = str(caught.value)
    for part in (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "Name or service not known",
        str(tmp_path / "data" / "cifar10"),
        "--data cifar10 --download-dir DIR",
        "--data cifar10 --data-dir FOLDER",
        "python -m experiments.vim_cifar --data digits",
    ):
        assert part in message
    assert len(no_network) == 1
    assert not list(tmp_path.iterdir()), "a failed download leaves no folders behind"


def test_a_missing_archive_is_named_and_the_others_are_seen(fake_archives, no_network, tmp_path):
    fake = fake_archives("mnist")
    (fake.folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataUnavailable) as caught:
        load_images("mnist", data_dir=tmp_path / "data", download_dir=fake.folder)
    assert len(no_network) == 1 and no_network[0].endswith("t10k-labels-idx1-ubyte.gz")
    assert str(caught.value).count("is there already") == 3


def test_missing_archives_are_downloaded(fake_archives, tmp_path, monkeypatch):
    fake = fake_archives("cifar10")
    group = ARCHIVES["cifar10"]
    served = tuple(dataclasses.replace(a, url=(fake.folder / a.filename).as_uri()) for a in group.archives)
    monkeypatch.setitem(ARCHIVES, "cifar10", dataclasses.replace(group, archives=served))
    data = load_images("cifar10", data_dir=tmp_path / "data")
    assert len(data.train_images) == 20
    kept = tmp_path / "data" / "downloads" / "manual" / "cifar10"
    assert [path.name for path in kept.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_truncated_archive_is_refused(fake_archives, tmp_path):
    fake = fake_archives("mnist")
    path = fake.folder / "train-images-idx3-ubyte.gz"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(DataUnavailable, match=r"(?s)train-images.*truncated.*expected sha256.*got .*download it again"):
        load_images("mnist", data_dir=tmp_path / "data", download_dir=fake.folder)
    assert not (tmp_path / "data").exists()


def test_another_sets_archive_is_recognized(fake_archives, tmp_path):
    mnist, _ = fake_archives("mnist"), fake_archives("fashion_mnist", seed=1)
    with pytest.raises(DataUnavailable, match=r"(?s)is mnist's archive, not fashion_mnist's.*folder of their own"):
        load_images("fashion_mnist", data_dir=tmp_path / "data", download_dir=mnist.folder)


def test_an_interrupted_preparation_does_not_count(fake_archives, tmp_path):
    fake = fake_archives("mnist")
    (tmp_path / "data" / "mnist" / "incomplete.ABCDEF_3.0.1").mkdir(parents=True)
    data = load_images("mnist", data_dir=tmp_path / "data", download_dir=fake.folder)
    assert len(data.train_images) == 20


def test_a_faster_process_may_have_prepared_it(fake_archives, tmp_path, monkeypatch):
    from ssmjax.data import builders

    fake = fake_archives("mnist")
    prepare = builders.prepare

    def lose_the_race(*args):
        prepare(*args)
        raise OSError("Directory not empty")

    monkeypatch.setattr(builders, "prepare", lose_the_race)
    assert len(load_images("mnist", data_dir=tmp_path / "data", download_dir=fake.folder).test_images) == 10


def test_an_unwritable_data_dir_is_reported(fake_archives, tmp_path):
    fake = fake_archives("mnist")
    (tmp_path / "file").touch()
    with pytest.raises(DataUnavailable, match="(?s)cannot be prepared in .*file.*--data-dir FOLDER"):
        load_images("mnist", data_dir=tmp_path / "file", download_dir=fake.folder)


def _truncate(folder):
    path = folder / "mnist-train.array_record-00000-of-00001"
    os.truncate(path, path.stat().st_size // 2)


def _flip_a_bit(folder):
    path = folder / "mnist-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)


def _miscount(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"20"', '"21"'))


def _other_format(folder):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "incomplete or damaged.*Delete that folder"),
        (_flip_a_bit, "incomplete or damaged.*hash mismatch"),
        (_miscount, "incomplete or damaged"),
        (_other_format, "prepared as tfrecord.*array_record is wanted"),
        (lambda folder: (folder / "dataset_info.json").unlink(), "it has no dataset_info.json"),
        (lambda folder: (folder / "mnist-test.array_record-00000-of-00001").unlink(), "incomplete or damaged"),
    ],
)
def test_a_damaged_prepared_folder_is_refused(damage, message, fake_archives, no_network, tmp_path):
    fake = fake_archives("mnist")
    load_images("mnist", data_dir=tmp_path / "data", download_dir=fake.folder)
    damage(tmp_path / "data" / "mnist" / "3.0.1")
    with pytest.raises(DataUnavailable, match=f"(?s){message}"):
        load_images("mnist", data_dir=tmp_path / "data", download_dir=fake.folder)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="Unknown data set 'cifar_10'. Did you mean 'cifar10'"):
        load_images("cifar_10")


def test_missing_packages_are_named_before_anything_is_downloaded(no_network, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: None if m == "tensorflow_datasets" else find_spec(m))
    with pytest.raises(DataUnavailable, match="pip install tensorflow-datasets$"):
        load_images("cifar10")
    assert not no_network


def test_importing_the_package_loads_no_data_library():
    code = (
        "import sys, ssmjax.data; "
        "print([m for m in ('tensorflow_datasets', 'tensorflow', 'sklearn', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_resize_agrees_with_pillow_and_repetition(method):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    resized = resize_images(images, 32, method)
    assert resized.dtype == np.uint8
    if method == "nearest":
        np.testing.assert_array_equal(resized, images.repeat(4, 1).repeat(4, 2))
    else:
        from PIL import Image

        for image, got in zip(images, resized, strict=True):
            wanted = np.asarray(Image.fromarray(image[..., 0]).resize((32, 32), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(got[..., 0].astype(int), wanted, atol=1)


def test_resize_in_pieces_keeps_the_order():
    images = np.broadcast_to(np.arange(5000) % 256, (1, 1, 1, 5000)).T.astype(np.uint8)
    resized = resize_images(images, 2)
    np.testing.assert_array_equal(resized, np.broadcast_to(images, (5000, 2, 2, 1)))
    assert resize_images(images, 1) is images
    assert resize_images(images[:0], 2).shape == (0, 2, 2, 1)


def test_resized_data_keeps_its_identity():
    data = load_images("digits")
    larger = data.resized(16)
    assert larger.image_shape == (16, 16, 1) and larger.checksum == data.checksum and larger.source == data.source
    np.testing.assert_allclose(larger.mean, (larger.train_images / 255).mean(), rtol=1e-5)
    np.testing.assert_allclose(larger.std, (larger.train_images / 255).std(), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((8, 8, 1), np.uint8), 4), r"images must be \(N y x d\) uint8, got \(8, 8, 1\)"),
        ((np.zeros((2, 8, 8, 1), np.float32), 4), "got .* float32"),
        ((np.zeros((2, 8, 8, 1), np.uint8), 0), "size must be a positive number"),
        ((np.zeros((2, 8, 8, 1), np.uint8), 4, "bilinar"), "Did you mean 'bilinear'"),
    ],
)
def test_resize_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        resize_images(*arguments)


def test_the_names_are_those_of_the_documentation():
    assert IMAGE_SETS == ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
