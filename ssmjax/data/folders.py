"""A user's own images: one folder a class, on disk or in a tar archive."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ssmjax.data.archives import DataUnavailable, Records
from ssmjax.data.images import ImageData, describe_records
from ssmjax.errors import bad_argument
from ssmjax.paths import local_path

__all__ = ["decode_image", "load_image_folders"]

_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif")
_TEST_NAMES = ("val", "test", "valid", "validation")

Named = list[tuple[str, bytes]]


def load_image_folders(
    path: str | Path,
    *,
    size: int | None = None,
    test_share: float = 0.2,
    per_class: tuple[int, int] | None = None,
    name: str = "folders",
) -> ImageData:
    """Loads images that lie in one folder a class.

    The classes are the folders in `train` and in `val` (or `test`, `valid`, `validation`); without these two, those in
    `path` itself, of each of which the last share by name is the test set. Grey images become colored ones. A
    `words.txt` beside them, with lines of a folder's name, a tab and words, gives the names of the classes.

    Args:
        path: The folder, or a `.tar`, `.tar.gz` or `.tgz` archive of it.
        size: The side in pixels that all images are brought to; None keeps their size, which must then be one.
        test_share: The share of each class that becomes the test set where there is no `val`.
        per_class: The largest number of training and of test images of each class; the first by name are taken.
        name: What to call the data set.

    Returns:
        The arrays, in the order of classes and names.

    Raises:
        DataUnavailable: There is no such folder, or it holds no classes of images.
        ValueError: An image cannot be read, or they differ in size and `size` is not given.

    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> for kind, value in (("black", 0), ("white", 255)):
    ...     (folder / kind).mkdir()
    ...     for i in range(5):
    ...         Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(folder / kind / f"{i}.png")
    >>> load_image_folders(folder).class_names
    ('black', 'white')
    """
    path = local_path("load_image_folders", "path", path)
    if not 0 < test_share < 1:
        raise bad_argument("load_image_folders", "test_share", test_share, "between 0 and 1")
    if not path.exists():
        raise DataUnavailable(f"load_image_folders: {str(path)!r} is not there. Give a folder with one folder a class.")
    by_split, words = _sorted_into_classes(path)
    train, test = by_split.get("train", {}), next((by_split[n] for n in _TEST_NAMES if n in by_split), {})
    if not train or not test:
        whole = by_split.get("", {})
        cut = {kind: max(1, len(files) - max(1, round(test_share * len(files)))) for kind, files in whole.items()}
        train = {kind: files[: cut[kind]] for kind, files in whole.items()}
        test = {kind: files[cut[kind] :] for kind, files in whole.items()}
    kinds = sorted(train)
    if len(kinds) < 2 or kinds != sorted(test):
        wanted = (
            "It needs two or more folders, one a class, of JPEG or PNG files; or the same ones in train/ and in val/."
        )
        raise DataUnavailable(f"load_image_folders: no classes of images in {str(path)!r}. {wanted}")
    limits = per_class or (None, None)
    splits = {
        split: _decoded(kinds, files, size, limit)
        for split, files, limit in (("train", train, limits[0]), ("test", test, limits[1]))
    }
    records = Records(splits, {"label": tuple(words.get(kind, kind) for kind in kinds)})
    return describe_records(name, records, f"class folders in {path}")


def _sorted_into_classes(path: Path) -> tuple[dict[str, dict[str, Named]], dict[str, str]]:
    """The images' bytes by split ("" for none) and class, each sorted by name, and the words for the classes."""
    found: dict[str, dict[str, Named]] = {}
    words: dict[str, str] = {}
    for name, data in _files(path):
        parts = PurePosixPath(name).parts
        if parts[-1] == "words.txt":
            lines = (line.split("\t") for line in data.decode("utf-8").splitlines() if "\t" in line)
            words = {key: text.split(",")[0].strip() for key, text in lines}
        if PurePosixPath(name).suffix.lower() not in _SUFFIXES or len(parts) < 2:
            continue
        split = next((part for part in parts[:-1] if part in ("train", *_TEST_NAMES)), "")
        # Of `split/class/images/file`, too, the class is what comes after the split.
        kind = parts[parts.index(split) + 1] if split and parts.index(split) + 1 < len(parts) - 1 else parts[-2]
        found.setdefault(split, {}).setdefault(kind, []).append((name, data))
    return {s: {kind: sorted(files) for kind, files in kinds.items()} for s, kinds in found.items()}, words


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a folder or of an archive, by their names in it."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and (content := archive.extractfile(member)) is not None:
                    yield member.name, content.read()
    except tarfile.TarError as error:
        raise DataUnavailable(f"load_image_folders: {str(path)!r} is no tar archive ({error}).") from error


def _decoded(kinds: list[str], files: dict[str, Named], size: int | None, limit: int | None) -> dict[str, np.ndarray]:
    images, labels = [], []
    for label, kind in enumerate(kinds):
        for name, data in files[kind][:limit]:
            images.append(decode_image(name, data, size))
            labels.append(label)
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"load_image_folders: the images have {len(shapes)} sizes. Give `size`, such as size=224.")
    return {"image": np.stack(images), "label": np.asarray(labels)}


def decode_image(name: str, data: bytes, size: int | None) -> np.ndarray:
    """The pixels (y x 3) of an image file's bytes; with a size, those of its middle square at that side."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")  # a camera notes how it was held
    # Pillow's errors: of a file that is cut off or damaged, and of one whose pixels would fill the memory.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"load_image_folders: {name!r} cannot be read as an image ({error}).") from error
    if size is not None and image.size != (size, size):
        side = min(image.size)  # the middle square, as large as it is, and then its size
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)
