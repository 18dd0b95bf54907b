"""Classes of ImageNet from a tiny folder that TFDS itself prepared, with the name and features of imagenet2012."""

import io

import numpy as np
import pytest
from PIL import Image

from ssmjax.data import DataUnavailable, load_imagenet_validation

NAMES = ["n01440764", "n01443537", "n01484850"]
SIZES = [(9, 6), (6, 8), (7, 7), (6, 6)]


def _color(label: int, i: int) -> tuple[int, int, int]:
    return 60 * label + 20, 40 * i + 30, 100


def _jpeg(label: int, i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", SIZES[i], _color(label, i)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import tensorflow_datasets as tfds

    class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")
        name = "imagenet2012"

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=NAMES),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                for label in range(3):
                    name = f"{label}_{i}.JPEG"
                    yield name, {"image": _jpeg(label, i), "label": label, "file_name": name}

    root = tmp_path_factory.mktemp("tfds")
    Imagenet2012(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_chosen_classes_are_split_and_brought_to_a_size(folder):
    data = load_imagenet_validation({NAMES[2]: "shark", NAMES[0]: "tench"}, size=4, test_share=0.25, data_dir=folder)
    assert data.class_names == ("shark", "tench") and data.source.startswith("tfds imagenet2012:5.1.0")
    assert data.train_images.shape == (6, 4, 4, 3) and data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 1]
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        for image, label in zip(images, labels, strict=True):
            pixel = image.reshape(-1, 3).mean(0)
            assert min(np.abs(pixel - _color([2, 0][label], i)).max() for i in range(4)) < 4


def test_errors(folder, tmp_path):
    with pytest.raises(ValueError, match="Unknown class of imagenet2012 'n014435'.*n01443537"):
        load_imagenet_validation({"n014435": "goldfish"}, size=4, data_dir=folder)
    for share in (0.0, 0.01):
        with pytest.raises(ValueError, match="test_share must be"):
            load_imagenet_validation({NAMES[0]: "tench"}, size=4, test_share=share, data_dir=folder)
    with pytest.raises(DataUnavailable, match=r"(?s)no prepared folder.*imagenet2012.*image-net\.org.*--folder"):
        load_imagenet_validation({NAMES[0]: "tench"}, size=4, data_dir=tmp_path)
