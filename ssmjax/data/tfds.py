"""Reads prepared TensorFlow Datasets folders into arrays, without TensorFlow."""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmjax.data.archives import DataUnavailable, Records
from ssmjax.paths import local_path

__all__ = [
    "data_folders",
    "default_data_dir",
    "find_prepared",
    "naming_damage",
    "open_prepared",
    "read_prepared",
    "undecoded",
]

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CHUNK = 4096


def default_data_dir() -> Path:
    """TFDS' own default: the variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return local_path("load_images", "TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def data_folders(
    where: str, data_dir: str | os.PathLike | None, download_dir: str | os.PathLike | None
) -> tuple[Path, Path]:
    """The folder of prepared data sets, and that of archives, as a user gave them or by default.

    Raises:
        ValueError: One of them is not on this machine.
    """
    chosen = local_path(where, "data_dir", data_dir) if data_dir is not None else default_data_dir()
    if download_dir is not None:
        return chosen, local_path(where, "download_dir", download_dir)
    return chosen, chosen / "downloads" / "manual"


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """The folder `data_dir/name/version` of the newest version, or None.

    A folder that TFDS has not finished has another name (`incomplete.XXXXXX_version`) and does not count.
    """
    folders = [path for path in (data_dir / name).glob("*") if path.is_dir() and _VERSION.fullmatch(path.name)]
    return max(folders, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def read_prepared(folder: Path) -> Records:
    """Reads the splits "train" and "test" of a prepared folder.

    Args:
        folder: The folder that `find_prepared` gives; the files must be in the array_record format, the images
            PNG or JPEG.

    Returns:
        The features `image` and `label`, in the folder's order.

    Raises:
        DataUnavailable: If the folder is incomplete, damaged, or in a format without random access.
    """
    with naming_damage(folder):
        builder = open_prepared(folder)
        splits = {split: _read_split(builder, split) for split in ("train", "test")}
        features: Any = builder.info.features
        names = tuple(features["label"].names)
    return Records(splits, {"label": names})


@contextlib.contextmanager
def naming_damage(folder: Path) -> Iterator[None]:
    """Makes one message of whatever reading a damaged folder raises."""
    try:
        yield
    except (DataUnavailable, ImportError, MemoryError):
        raise
    # array_record, protobuf, PIL and TFDS each raise their own errors on damaged files, down to RuntimeError.
    except Exception as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def open_prepared(folder: Path) -> Any:
    """The TFDS builder of a prepared folder whose records can be read without TensorFlow."""
    import tensorflow_datasets as tfds

    for needed in ("dataset_info.json", "features.json"):
        if not (folder / needed).is_file():
            raise _damaged(folder, f"it has no {needed}")
    builder = tfds.builder_from_directory(folder)
    formats = builder.info.available_file_formats()
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        raise DataUnavailable(
            f"{folder} was prepared as {', '.join(f.value for f in formats)}, which only TensorFlow reads; "
            "array_record is wanted. Give another --data-dir, where the data set is then prepared anew, or prepare "
            f'it with tfds.builder("{builder.name}", data_dir=..., file_format="array_record")'
            ".download_and_prepare()"
        )
    return builder


def undecoded(builder: Any, split: str) -> Sequence[dict[str, Any]]:
    """The examples of a split, with the bytes of the image files in place of pixels.

    The bytes are decoded by us: TFDS' Image feature would do it at half the speed, and by OpenCV where there is one.
    """
    import tensorflow_datasets as tfds

    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _read_split(builder: Any, split: str) -> dict[str, np.ndarray]:
    source = undecoded(builder, split)
    count, shape = builder.info.splits[split].num_examples, builder.info.features["image"].shape
    if len(source) != count:
        raise ValueError(f"split {split!r} has {len(source)} records, and its dataset_info.json says {count}")
    if None in shape:
        raise ValueError(f"the images are of no common size: {shape}")
    images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
    for start in range(0, count, _CHUNK):
        indices = range(start, min(start + _CHUNK, count))
        _decode(source.__getitems__(list(indices)), images[start : indices.stop], labels[start : indices.stop])
    return {"image": images, "label": labels}


def _decode(examples: Sequence[dict[str, Any]], images: np.ndarray, labels: np.ndarray) -> None:
    """Decodes examples into arrays that are there already."""
    from PIL import Image

    for example, image, label in zip(examples, images, labels[:, None], strict=True):
        decoded = np.asarray(Image.open(io.BytesIO(example["image"]), formats=("PNG", "JPEG")))
        image[...] = decoded.reshape(image.shape)
        label[...] = example["label"]


def _damaged(folder: Path, why: str) -> DataUnavailable:
    return DataUnavailable(
        f"The prepared data set in {folder} is incomplete or damaged ({why}).\n"
        f"Delete that folder, or give another --data-dir, and run again: it is then prepared anew from the archives."
    )
