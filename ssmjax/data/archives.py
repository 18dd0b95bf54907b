"""The official archives of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100: their addresses, hashes and formats.

They are read with numpy, straight from the compressed file: nothing is unpacked to disk, and no pickle is
opened (CIFAR's "python version" is a pickle; this module reads the "binary version").

sha256 values are those that TensorFlow Datasets publishes in its `url_checksums`.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["ARCHIVES", "Archive", "ArchiveSet", "DataUnavailable", "Records", "sha256_of", "verify"]


class DataUnavailable(Exception):
    """A data set cannot be had; `str()` is the whole story and the remedy, fit to be printed without a traceback."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """One file to download."""

    url: str
    sha256: str

    @property
    def filename(self) -> str:
        """The official name, which the file must also have when it is placed by hand."""
        return self.url.rsplit("/", 1)[1]


@dataclasses.dataclass(frozen=True)
class Records:
    """What a set of archives holds, in the order of the archives.

    Attributes:
        splits: Arrays by split ("train", "test") and feature: `image` (N y x d) uint8, `label` (N) and, for
            CIFAR-100, `coarse_label` (N).
        class_names: The names of the classes, by label feature.
    """

    splits: Mapping[str, Mapping[str, np.ndarray]]
    class_names: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class ArchiveSet:
    """The archives that make up one data set, and the function that reads them from a folder."""

    archives: tuple[Archive, ...]
    read: Callable[[Path], Records]


def verify(name: str, folder: Path) -> None:
    """Checks that every archive of a data set that lies in `folder` is, to the bit, the official one.

    Raises:
        DataUnavailable: If a file's sha256 is not the published one (truncated, damaged, or another file).
    """
    for archive in ARCHIVES[name].archives:
        path = folder / archive.filename
        got = sha256_of(path)
        if got == archive.sha256:
            continue
        if owner := next((key for key, group in ARCHIVES.items() if got in {a.sha256 for a in group.archives}), None):
            what = f"is {owner}'s archive, not {name}'s: their files have the same names"
            remedy = f"Put {name}'s archives into a folder of their own, {folder / name}, from"
        else:
            what = "is not the official archive: it is truncated, damaged, or another file of that name"
            remedy = "Delete it and download it again from"
        raise DataUnavailable(
            f"{path} ({path.stat().st_size:,} bytes) {what}.\n"
            f"  expected sha256  {archive.sha256}\n"
            f"  got              {got}\n"
            f"{remedy} {archive.url}"
        )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Turns what gzip, tarfile and numpy raise on a damaged file into one message that names the file."""
    try:
        yield path
    except (ValueError, EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise DataUnavailable(
            f"{path} cannot be read: {error}. It is truncated or damaged; delete it and download it again."
        ) from error


def _read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped idx file of bytes: 0, 0, type 8, rank, then the shape as big-endian int32, then the data."""
    data = gzip.decompress(path.read_bytes())
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError("no idx file of unsigned bytes: its magic number is wrong")
    shape = tuple(np.frombuffer(data, ">i4", count=data[3], offset=4).tolist())
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _mnist_reader(class_names: tuple[str, ...]) -> Callable[[Path], Records]:
    def read(folder: Path) -> Records:
        splits = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            with _readable(folder / f"{prefix}-images-idx3-ubyte.gz") as path:
                images = _read_idx(path)[..., None]
            with _readable(folder / f"{prefix}-labels-idx1-ubyte.gz") as path:
                labels = _read_idx(path)
            splits[split] = {"image": images, "label": labels}
        return Records(splits, {"label": class_names})

    return read


def _members(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Reads files from a tar.gz in one pass: a gzip stream can only be read forwards."""
    members = {}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            if member.name in wanted and (file := tar.extractfile(member)) is not None:
                members[member.name] = file.read()
    if missing := sorted(set(wanted) - set(members)):
        raise ValueError(f"it lacks {', '.join(missing)}")
    return members


def _cifar_reader(
    filename: str, prefix: str, files: Mapping[str, tuple[str, ...]], name_files: Mapping[str, str]
) -> Callable[[Path], Records]:
    """Reads CIFAR's binary version: a row is one byte a label (`name_files`' order), then the image, channels first."""

    def read(folder: Path) -> Records:
        with _readable(folder / filename) as path:
            members = _members(
                path, [prefix + file for group in (*files.values(), name_files.values()) for file in group]
            )
            splits = {}
            for split, group in files.items():
                rows = np.frombuffer(b"".join(members[prefix + file] for file in group), np.uint8)
                rows = rows.reshape(-1, len(name_files) + 3 * 32 * 32)
                images = rows[:, len(name_files) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                labels = {feature: rows[:, i] for i, feature in enumerate(name_files)}
                splits[split] = {"image": images, **labels}
            names = {feature: tuple(members[prefix + file].decode().split()) for feature, file in name_files.items()}
        return Records(splits, names)

    return read


def _mnist_archives(base: str, sha256: Mapping[str, str]) -> tuple[Archive, ...]:
    return tuple(Archive(f"{base}/{stem}-ubyte.gz", value) for stem, value in sha256.items())


_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

ARCHIVES: dict[str, ArchiveSet] = {
    "mnist": ArchiveSet(
        _mnist_archives(
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            {
                "train-images-idx3": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
        ),
        _mnist_reader(tuple("0123456789")),
    ),
    "fashion_mnist": ArchiveSet(
        _mnist_archives(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            {
                "train-images-idx3": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "train-labels-idx1": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "t10k-images-idx3": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "t10k-labels-idx1": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            },
        ),
        _mnist_reader(_FASHION),
    ),
    "cifar10": ArchiveSet(
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        _cifar_reader(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin/",
            {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
            {"label": "batches.meta.txt"},
        ),
    ),
    "cifar100": ArchiveSet(
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        _cifar_reader(
            "cifar-100-binary.tar.gz",
            "cifar-100-binary/",
            {"train": ("train.bin",), "test": ("test.bin",)},
            {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
        ),
    ),
}
"""The official archives by data set; the names are those of TensorFlow Datasets."""
