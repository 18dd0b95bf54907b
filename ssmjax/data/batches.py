"""Batches as a pure function of (seed, step): nothing to save, nothing to restore, and resume is exact."""

from collections.abc import Iterator

import numpy as np

from ssmjax.errors import bad_argument, bad_shape

__all__ = ["Batches", "eval_batches"]


class Batches:
    """Training batches: a new permutation every epoch, the last partial batch of an epoch left out.

    The permutation of an epoch comes from numpy's counter-based Philox under the key (seed, epoch), so that any step's
    batch is found without the ones before it. Its raw stream is the same in every version of numpy.

    >>> images, labels = np.zeros((5, 8, 8, 1), np.uint8), np.arange(5, dtype=np.int32)
    >>> batches = Batches(images, labels, 2, seed=0)
    >>> batches.steps_per_epoch
    2
    >>> batches.at(7)["image"].shape
    (2, 8, 8, 1)
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int, *, seed: int):
        """Makes the function; the arrays are kept, not copied.

        Args:
            images: (N y x d) uint8.
            labels: (N) integers.
            batch_size: Images a batch, at most N.
            seed: Of the order, 0 <= seed < 2 ** 64.

        Raises:
            ValueError: If one of them is something else.
        """
        _check("Batches", images, labels, batch_size)
        if batch_size > len(images):
            raise bad_argument("Batches", "batch_size", batch_size, f"at most the {len(images)} images there are")
        if not 0 <= seed < 2**64:
            raise bad_argument("Batches", "seed", seed, "in 0 .. 2 ** 64 - 1")
        self.batch_size = batch_size
        self.steps_per_epoch = len(images) // batch_size
        self._images, self._labels, self._seed = images, labels.astype(np.int32), seed
        self._order = -1, np.empty(0, np.int64)

    def at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step.

        Args:
            step: 0, 1, ...; epochs follow one another.

        Returns:
            `image` (b y x d) uint8 and `label` (b) int32.

        Raises:
            ValueError: If the step is negative.
        """
        if step < 0:
            raise bad_argument("Batches.at", "step", step, "0 or more")
        epoch, index = divmod(int(step), self.steps_per_epoch)
        chosen = self._permutation(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return {"image": self._images[chosen], "label": self._labels[chosen]}

    def _permutation(self, epoch: int) -> np.ndarray:
        # Only a memo of the epoch at hand. Read and replaced as one tuple, so that threads may share the object.
        known, order = self._order
        if known != epoch:
            key = np.array([self._seed, epoch], np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(len(self._images)), kind="stable")
            self._order = epoch, order
        return order


def eval_batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every image once, in order, in batches of one shape: the last is filled with zeros and masked.

    Args:
        images: (N y x d) uint8.
        labels: (N) integers.
        batch_size: Images a batch; may exceed N.

    Returns:
        An iterator of `image` (b y x d) uint8, `label` (b) int32 and `mask` (b) bool, True where an image is real.

    Raises:
        ValueError: If one of the arguments is something else; at the call, not at the first batch.

    >>> images, labels = np.zeros((3, 8, 8, 1), np.uint8), np.arange(3, dtype=np.int32)
    >>> [batch["mask"].tolist() for batch in eval_batches(images, labels, 2)]
    [[True, True], [True, False]]
    """
    _check("eval_batches", images, labels, batch_size)
    return (_padded(images, labels, start, batch_size) for start in range(0, len(images), batch_size))


def _padded(images: np.ndarray, labels: np.ndarray, start: int, size: int) -> dict[str, np.ndarray]:
    image, label = images[start : start + size], labels[start : start + size].astype(np.int32)
    fill = size - len(image)
    return {
        "image": np.pad(image, ((0, fill), (0, 0), (0, 0), (0, 0))),
        "label": np.pad(label, (0, fill)),
        "mask": np.arange(size) < len(image),
    }


def _check(where: str, images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
    if np.ndim(images) != 4 or images.dtype != np.uint8:
        raise bad_shape(where, "images", images, "(N y x d) uint8", "Floats are made of them later, by data.normalize.")
    if np.ndim(labels) != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise bad_shape(where, "labels", labels, "(N) integers")
    if len(labels) != len(images):
        raise bad_shape(where, "labels", labels, f"one label for each of the {len(images)} images")
    if len(images) == 0:
        raise bad_shape(where, "images", images, "at least one image")
    if batch_size < 1:
        raise bad_argument(where, "batch_size", batch_size, "positive")
