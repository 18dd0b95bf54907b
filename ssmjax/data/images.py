"""Image classification sets as numpy arrays, from wherever they can be had; never another set than the one named."""

import dataclasses
import functools
import hashlib
import http.client
import importlib.util
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.data import tfds
from ssmjax.data.archives import ARCHIVES, Archive, DataUnavailable, Records, verify
from ssmjax.data.download import download
from ssmjax.data.embedded import read_digits
from ssmjax.errors import bad_argument, bad_shape, require_known

__all__ = ["IMAGE_SETS", "ImageData", "load_images", "resize_images"]

_log = logging.getLogger(__name__)

IMAGE_SETS = ("digits", *ARCHIVES)
"""The names that `load_images` knows; "digits" needs no download."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A data set in memory.

    Attributes:
        name: Its name, one of `IMAGE_SETS`.
        train_images: (N y x d) uint8.
        train_labels: (N) int32.
        test_images: (N y x d) uint8.
        test_labels: (N) int32.
        class_names: One name a label.
        mean: (d) float32, the training images' mean over images and pixels, of values in [0, 1].
        std: (d) float32, their standard deviation.
        checksum: sha256 over the four arrays as they were loaded.
        source: Where they came from, for people and for results files.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    checksum: str
    source: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of an image."""
        return self.train_images.shape[1:]

    def resized(self, size: int, method: str = "bilinear") -> "ImageData":
        """The same data at another size, with new mean and standard deviation; the checksum stays the original's."""
        train, test = (resize_images(images, size, method) for images in (self.train_images, self.test_images))
        mean, std = _moments(train)
        return dataclasses.replace(self, train_images=train, test_images=test, mean=mean, std=std)

    def __repr__(self) -> str:
        counts = f"{len(self.train_images):,} + {len(self.test_images):,} images of {self.image_shape}"
        return f"ImageData({self.name!r}, {counts}, {self.num_classes} classes, from {self.source})"


def load_images(
    name: str, *, data_dir: str | os.PathLike | None = None, download_dir: str | os.PathLike | None = None
) -> ImageData:
    """Loads an image classification set.

    "digits" is embedded in scikit-learn. The others are looked for in this order: a folder that TensorFlow Datasets (or
    an earlier call) prepared, `data_dir/name/version`, used as it is; the official archives, in `download_dir/name` or
    `download_dir`, checked against TFDS' published sha256 and prepared into `data_dir`; the official server. No
    TensorFlow is needed.

    Args:
        name: One of `IMAGE_SETS`: "digits", "mnist", "fashion_mnist", "cifar10", "cifar100".
        data_dir: The folder of prepared folders. Default: the variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        download_dir: Where archives lie that were placed by hand, and where downloads go. Default:
            `data_dir/downloads/manual`.

    Returns:
        The arrays, in the order of the prepared folder, and what is known about them.

    Raises:
        ValueError: If the name is unknown.
        DataUnavailable: If the data set is not here and cannot be fetched, or is damaged; the message is the remedy.

    >>> load_images("digits")
    ImageData('digits', 1,438 + 359 images of (8, 8, 1), 10 classes, from scikit-learn load_digits)
    """
    require_known("data set", name, IMAGE_SETS)
    if name == "digits":
        return describe_records(name, read_digits(), "scikit-learn load_digits")
    _require_packages(name)
    data_dir, manual = tfds.data_folders("load_images", data_dir, download_dir)
    folder = tfds.find_prepared(name, data_dir) or _prepare(name, data_dir, manual)
    records = tfds.read_prepared(folder)
    return describe_records(name, records, f"tfds {name}:{folder.name} in {folder.parent.parent}")


def _prepare(name: str, data_dir: Path, download_dir: Path) -> Path:
    """Makes the prepared folder from the archives, which are fetched where they are missing."""
    archive_dir = _archive_dir(name, download_dir)
    for archive in ARCHIVES[name].archives:
        if not (archive_dir / archive.filename).is_file():
            try:
                download(archive, archive_dir)
            except (OSError, http.client.HTTPException) as error:
                raise DataUnavailable(_how_to_get(name, data_dir, archive_dir, archive.url, error)) from error
    verify(name, archive_dir)

    from ssmjax.data import builders

    _log.info("preparing %s from the archives in %s, into %s", name, archive_dir, data_dir)
    try:
        builders.prepare(name, data_dir, archive_dir)
    except OSError as error:
        # Another process may have been faster: then the folder is there, and complete, for TFDS renames it at the end.
        if tfds.find_prepared(name, data_dir) is None:
            raise DataUnavailable(
                f"The data set {name!r} cannot be prepared in {data_dir}: {error}.\n"
                "Give a folder that can be written to, on a disk with room (about 200 MB), with --data-dir FOLDER"
            ) from error
    folder = tfds.find_prepared(name, data_dir)
    assert folder is not None, "TFDS reported success and left no folder"
    return folder


def _archive_dir(name: str, download_dir: Path) -> Path:
    """Where the archives lie or shall lie: the set's own folder, as MNIST's and Fashion-MNIST's names agree."""
    own = download_dir / name
    here = [folder for folder in (own, download_dir) if any((folder / a.filename).is_file() for a in _archives(name))]
    return here[0] if here else own


def _archives(name: str) -> tuple[Archive, ...]:
    return ARCHIVES[name].archives


def _how_to_get(name: str, data_dir: Path, archive_dir: Path, url: str, error: Exception) -> str:
    """The message for a data set that is nowhere: what was tried, and what can be done."""
    files = "\n".join(
        f"      {a.url}{'   (is there already)' if (archive_dir / a.filename).is_file() else ''}"
        for a in _archives(name)
    )
    command = f"python -m experiments.vim_cifar --data {name}"
    return f"""The data set {name!r} is not on this machine, and it could not be downloaded.
  no prepared folder    {data_dir / name}
  not all archives in   {archive_dir}
  download failed       {url}: {getattr(error, "reason", None) or error or type(error).__name__}

What can be done:
  1. With a network, run the same command again.
  2. Without one, download these files elsewhere, put them under their own names into a folder DIR, and run
     {command} --download-dir DIR
{files}
  3. Use a folder FOLDER in which TensorFlow Datasets prepared {name!r} in the array_record format:
     {command} --data-dir FOLDER
  4. Use other data, which needs no download:
     python -m experiments.vim_cifar --data digits"""


def _require_packages(name: str) -> None:
    """Fails early and completely, before a download, where the optional packages are not installed."""
    needed = {
        "tensorflow_datasets": "tensorflow-datasets",
        "importlib_resources": "importlib_resources",
        "PIL": "pillow",
    }
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DataUnavailable(
            f"The data set {name!r} is read with packages that are not installed: pip install {' '.join(missing)}"
        )


def describe_records(name: str, records: Records, source: str) -> ImageData:
    """Puts records into the arrays that are promised, and describes them."""
    train_images, test_images = (np.ascontiguousarray(records.splits[s]["image"], np.uint8) for s in ("train", "test"))
    train_labels, test_labels = (np.ascontiguousarray(records.splits[s]["label"], np.int32) for s in ("train", "test"))
    digest = hashlib.sha256()
    for array in (train_images, train_labels, test_images, test_labels):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array)
    mean, std = _moments(train_images)
    data = ImageData(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=records.class_names["label"],
        mean=mean,
        std=std,
        checksum=digest.hexdigest(),
        source=source,
    )
    _log.info("%r, sha256 %s", data, data.checksum)
    return data


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel in [0, 1]: exact, and in little memory, from histograms."""
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        mean.append(share @ levels)
        std.append(np.sqrt(share @ (levels - mean[-1]) ** 2))
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


@functools.partial(jax.jit, static_argnames=("size", "method"))
def _resize(images: jax.Array, size: int, method: str) -> jax.Array:
    shape = (images.shape[0], size, size, images.shape[-1])
    resized = jax.image.resize(images.astype(jnp.float32), shape, method)
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)


def resize_images(images: np.ndarray, size: int, method: str = "bilinear") -> np.ndarray:
    """Resizes images to `size` x `size` pixels, on the host's memory in pieces.

    Args:
        images: (N y x d) uint8.
        size: Rows and columns of the result.
        method: "bilinear" (anti-aliased where it shrinks) or "nearest".

    Returns:
        (N size size d) uint8; `images` itself if they have that size already.

    Raises:
        ValueError: If the images are of another rank or dtype, or the size or the method is none.

    >>> resize_images(np.array([[[[0], [200]], [[200], [0]]]], np.uint8), 4)[0, :, :, 0]
    array([[  0,  50, 150, 200],
           [ 50,  75, 125, 150],
           [150, 125,  75,  50],
           [200, 150,  50,   0]], dtype=uint8)
    """
    if np.ndim(images) != 4 or images.dtype != np.uint8:
        raise bad_shape("resize_images", "images", images, "(N y x d) uint8")
    if size < 1:
        raise bad_argument("resize_images", "size", size, "a positive number of pixels")
    require_known("resize method", method, ("bilinear", "nearest"))
    if images.shape[1:3] == (size, size):
        return images
    pieces = [np.asarray(_resize(images[i : i + 4096], size, method)) for i in range(0, len(images), 4096)]
    return np.concatenate(pieces) if pieces else np.empty((0, size, size, images.shape[-1]), np.uint8)
