"""Some classes of ImageNet's validation images, from a folder that TensorFlow Datasets prepared."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssmjax.data import tfds
from ssmjax.data.archives import DataUnavailable, Records
from ssmjax.data.folders import decode_image
from ssmjax.data.images import ImageData, describe_records
from ssmjax.errors import bad_argument, require_known

__all__ = ["load_imagenet_validation"]

_HOW = """The data set 'imagenet2012' is not on this machine; ImageNet's terms allow no download without an account.
  no prepared folder    {folder}

What can be done:
  1. Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org, and prepare them by
     tfds.builder("imagenet2012", data_dir=FOLDER, file_format="array_record").download_and_prepare()
     Then give FOLDER with --data-dir.
  2. Give class folders of images, train/CLASS and val/CLASS, with --folder.
  3. Use other data, which needs no download: --split digits"""


def load_imagenet_validation(
    classes: Mapping[str, str],
    *,
    size: int,
    test_share: float = 0.2,
    data_dir: str | os.PathLike | None = None,
) -> ImageData:
    """Loads the 50 validation images of each of some ImageNet classes, and splits them into training and test images.

    Args:
        classes: By WordNet number, such as `n01443537`, what to call each class.
        size: The side in pixels that the middle square of each image is brought to.
        test_share: The share of each class that becomes the test set: its last images in the order of the folder.
        data_dir: The folder of folders that TFDS prepared; this is about its `imagenet2012`, in the array_record
            format. Default: the variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
        The arrays, in the order of `classes`.

    Raises:
        ValueError: A class is unknown, or `test_share` leaves no image on one side.
        DataUnavailable: The data set is not on this machine, or is damaged; the message is the remedy.

    >>> import tempfile
    >>> load_imagenet_validation({"n01443537": "goldfish"}, size=64, data_dir=tempfile.mkdtemp())
    Traceback (most recent call last):
    ssmjax.data.archives.DataUnavailable: The data set 'imagenet2012' is not on this machine...
    """
    if not 0 < test_share < 1:
        raise bad_argument("load_imagenet_validation", "test_share", test_share, "between 0 and 1")
    root, _ = tfds.data_folders("load_imagenet_validation", data_dir, None)
    folder = tfds.find_prepared("imagenet2012", root)
    if folder is None:
        raise DataUnavailable(_HOW.format(folder=root / "imagenet2012"))
    with tfds.naming_damage(folder):
        builder = tfds.open_prepared(folder)
        known = builder.info.features["label"].names
    for name in classes:
        require_known("class of imagenet2012", name, known)
    with tfds.naming_damage(folder):
        found = _images(builder, {known.index(name): i for i, name in enumerate(classes)}, size)
    splits: dict[str, dict[str, list[Any]]] = {split: {"image": [], "label": []} for split in ("train", "test")}
    for label, images in enumerate(found):
        cut = round((1 - test_share) * len(images))
        for split, part in (("train", images[:cut]), ("test", images[cut:])):
            if not part:
                raise bad_argument("load_imagenet_validation", "test_share", test_share, "one that leaves images")
            splits[split]["image"] += part
            splits[split]["label"] += [label] * len(part)
    arrays = {split: {name: np.asarray(values) for name, values in part.items()} for split, part in splits.items()}
    records = Records(arrays, {"label": tuple(classes.values())})
    return describe_records("imagenet2012_validation", records, f"tfds imagenet2012:{folder.name} in {root}")


def _images(builder: Any, wanted: Mapping[int, int], size: int) -> list[list[np.ndarray]]:
    """The images of each class, at one size, in the order of the records; only those are decoded."""
    found: list[list[np.ndarray]] = [[] for _ in wanted]
    for example in tfds.undecoded(builder, "validation"):
        label = wanted.get(int(example["label"]))
        if label is not None:
            found[label].append(decode_image(str(example["file_name"]), example["image"], size))
    return found
