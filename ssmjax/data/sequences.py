"""Labeled sequences in memory: images read pixel by pixel, tokens and waveforms with their lengths."""

import dataclasses
import hashlib
from collections.abc import Mapping

import numpy as np

from ssmjax.data.images import ImageData
from ssmjax.errors import bad_argument, bad_shape

__all__ = ["SequenceData", "fixed_permutation", "pixel_sequences", "sequence_data"]

_PERMUTATION_KEY = 0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SequenceData:
    """A classification set of sequences.

    Attributes:
        name: Its name.
        train: `inputs` (N l d) or, for tokens, (N l); `label` (N) int32; and `lengths` (N) int32 where they vary.
        test: The same arrays of the test set.
        class_names: One name a label.
        checksum: sha256 over all arrays.
        source: Where they came from, for people and for results files.
    """

    name: str
    train: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]
    class_names: tuple[str, ...]
    checksum: str
    source: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def length(self) -> int:
        """The length of a padded sequence."""
        return self.train["inputs"].shape[1]

    def first(self, count: int) -> "SequenceData":
        """The first examples of both splits, for checks of the plumbing; the checksum stays that of the whole set."""
        train, test = ({name: rows[:count] for name, rows in split.items()} for split in (self.train, self.test))
        return dataclasses.replace(self, train=train, test=test)

    def __repr__(self) -> str:
        counts = f"{len(self.train['label']):,} + {len(self.test['label']):,} sequences of length {self.length:,}"
        return f"SequenceData({self.name!r}, {counts}, {self.num_classes} classes, from {self.source})"


def sequence_data(
    name: str,
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
    *,
    source: str,
) -> SequenceData:
    """Puts arrays together to a data set, with a checksum over all of them.

    Args:
        name: Its name.
        train: `inputs` and `label`, and `lengths` where they vary; one row an example.
        test: The sequences and labels of the test set.
        class_names: One name a label.
        source: Where they came from.

    Returns:
        The data set; labels and lengths are int32.

    Raises:
        ValueError: The two splits have different arrays, or a split has rows of different numbers.

    >>> split = {"inputs": np.zeros((2, 5, 1), np.float32), "label": np.array([0, 1])}
    >>> sequence_data("demo", split, split, ("no", "yes"), source="zeros")
    SequenceData('demo', 2 + 2 sequences of length 5, 2 classes, from zeros)
    """
    splits = []
    for argument, split in (("train", train), ("test", test)):
        rows = {key: len(array) for key, array in split.items()}
        if set(split) - {"lengths"} != {"inputs", "label"} or set(train) != set(test) or len(set(rows.values())) != 1:
            wanted = "the arrays inputs and label, and lengths in both splits or in none, of one number of rows"
            raise bad_argument("sequence_data", argument, rows, wanted)
        splits.append({"inputs": np.ascontiguousarray(split["inputs"])})
        splits[-1] |= {key: np.ascontiguousarray(split[key], np.int32) for key in ("label", "lengths") if key in split}
    digest = hashlib.sha256()
    for split in splits:
        for array in split.values():
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array)
    return SequenceData(name, *splits, class_names=class_names, checksum=digest.hexdigest(), source=source)


def fixed_permutation(length: int) -> np.ndarray:
    """The order in which the pixels of permuted sequential images are read, the same for all images, runs and machines.

    It sorts the raw stream of numpy's counter-based Philox under the key 0, equal in all versions of numpy.
    Published permutations differ from one another; scores do not depend on which one it is.

    Args:
        length: How many pixels there are.

    Returns:
        (l) int64, the position that each place takes its pixel from.

    >>> fixed_permutation(8).tolist()
    [0, 2, 1, 5, 4, 3, 6, 7]
    """
    return np.argsort(np.random.Philox(key=_PERMUTATION_KEY).random_raw(length), kind="stable")


def pixel_sequences(data: ImageData, *, permuted: bool = False) -> SequenceData:
    """Reads images row by row, one pixel a step: sequential MNIST, CIFAR and the like (Le et al. 2015).

    Args:
        data: Images, as `load_images` gives them.
        permuted: Whether to reorder the pixels of every image by `fixed_permutation`.

    Returns:
        `inputs` (N l d) uint8 with l = rows x columns; `normalize` makes floats of them.

    Raises:
        ValueError: The images are of another rank.

    >>> from ssmjax.data import load_images
    >>> pixel_sequences(load_images("digits")).train["inputs"].shape
    (1438, 64, 1)
    """
    if data.train_images.ndim != 4:
        raise bad_shape("pixel_sequences", "data.train_images", data.train_images, "(N y x d)")

    def split(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        pixels = images.reshape(len(images), -1, images.shape[-1])
        return {"inputs": pixels[:, fixed_permutation(pixels.shape[1])] if permuted else pixels, "label": labels}

    return sequence_data(
        f"{'permuted' if permuted else 'sequential'} {data.name}",
        split(data.train_images, data.train_labels),
        split(data.test_images, data.test_labels),
        data.class_names,
        source=data.source,
    )
