"""Prepares TensorFlow Datasets folders from the official archives, without TensorFlow.

TFDS' own builders of these four sets unpack, decode and encode through TensorFlow. These read the archives with numpy
and hand TFDS ready-made PNG files; name, version, features, keys and hence the order of the records are the same, so
that the result is an ordinary TFDS folder: `tfds.builder("cifar10", data_dir=...).as_data_source("train")` opens it.

This module imports `tensorflow_datasets`; import it inside functions only.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ssmjax.data.archives import ARCHIVES

__all__ = ["BUILDERS", "prepare"]


class _ArchiveBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads a data set's archives from the manual folder; a subclass says what the set is."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "The manual folder holds the official archives (see ssmjax.data.archives)."

    description: str
    homepage: str
    citation: str
    image_shape: tuple[int, int, int]
    num_classes: Mapping[str, int]
    with_id: bool

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"image": tfds.features.Image(shape=self.image_shape)}
        features |= {key: tfds.features.ClassLabel(num_classes=count) for key, count in self.num_classes.items()}
        if self.with_id:
            features["id"] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=self.homepage,
            citation=self.citation,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        records = ARCHIVES[self.name].read(Path(dl_manager.manual_dir))
        features: Any = self.info.features
        for key, names in records.class_names.items():
            features[key].names = list(names)
        return {split: self._generate_examples(split, arrays) for split, arrays in records.splits.items()}

    def _generate_examples(self, split: str, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict[str, Any]]]:
        labels = {key: arrays[key].tolist() for key in self.num_classes}
        for index, image in enumerate(arrays["image"]):
            example = {"image": _png(image)} | {key: values[index] for key, values in labels.items()}
            if self.with_id:
                example["id"] = f"{split}_{index:05d}"
            # TFDS orders records by a hash of this key.
            yield index, example


def _png(image: np.ndarray) -> bytes:
    """Encodes an image (y x d) uint8 with one or three channels, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


class Mnist(_ArchiveBuilder, skip_registration=True):
    """MNIST."""

    name = "mnist"
    VERSION = tfds.core.Version("3.0.1")
    description = "The MNIST database of handwritten digits: 60,000 training and 10,000 test images of 28 x 28 pixels."
    homepage = "http://yann.lecun.com/exdb/mnist/"
    citation = "Y. LeCun, C. Cortes, C. J. C. Burges. The MNIST database of handwritten digits. 1998."
    image_shape = (28, 28, 1)
    num_classes = {"label": 10}
    with_id = False


class FashionMnist(_ArchiveBuilder, skip_registration=True):
    """Fashion-MNIST."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version("3.0.1")
    description = "Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28 pixels, 10 classes."
    homepage = "https://github.com/zalandoresearch/fashion-mnist"
    citation = "H. Xiao, K. Rasul, R. Vollgraf. Fashion-MNIST. arXiv:1708.07747, 2017."
    image_shape = (28, 28, 1)
    num_classes = {"label": 10}
    with_id = False


class Cifar10(_ArchiveBuilder, skip_registration=True):
    """CIFAR-10."""

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    description = "CIFAR-10: 50,000 training and 10,000 test color images of 32 x 32 pixels, 10 classes."
    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
    citation = "A. Krizhevsky. Learning multiple layers of features from tiny images. Technical report, 2009."
    image_shape = (32, 32, 3)
    num_classes = {"label": 10}
    with_id = True


class Cifar100(_ArchiveBuilder, skip_registration=True):
    """CIFAR-100."""

    name = "cifar100"
    VERSION = tfds.core.Version("3.0.2")
    description = "CIFAR-100: 50,000 training and 10,000 test color images of 32 x 32 pixels, 100 classes in 20 groups."
    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
    citation = "A. Krizhevsky. Learning multiple layers of features from tiny images. Technical report, 2009."
    image_shape = (32, 32, 3)
    num_classes = {"label": 100, "coarse_label": 20}
    with_id = True


BUILDERS: dict[str, type[_ArchiveBuilder]] = {cls.name: cls for cls in (Mnist, FashionMnist, Cifar10, Cifar100)}
"""The builders by name. They are not registered with TFDS, where the stock builders keep these names."""


def prepare(name: str, data_dir: Path, archive_dir: Path) -> None:
    """Writes `data_dir/name/version/` in the array_record format.

    TFDS writes into a temporary folder beside it and renames that at the end: an interrupted run leaves nothing that
    could be taken for a prepared folder.

    Args:
        name: A key of `BUILDERS`.
        data_dir: The folder of TFDS folders.
        archive_dir: Where the archives lie, verified by the caller.
    """
    builder = BUILDERS[name](data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=archive_dir))
