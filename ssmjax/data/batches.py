"""Batches as a pure function of (seed, step): nothing to save, nothing to restore, and resume is exact."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from ssmjax.errors import bad_argument, bad_shape
from ssmjax.shapes import Array

__all__ = ["ArrayBatches", "Batches", "eval_array_batches", "eval_batches"]


class ArrayBatches:
    """Training batches of named arrays: a new permutation every epoch, the last partial batch of an epoch left out.

    The permutation of an epoch comes from numpy's counter-based Philox under the key (seed, epoch), so that any step's
    batch is found without the ones before it. Its raw stream is the same in every version of numpy.

    >>> batches = ArrayBatches({"inputs": np.zeros((5, 7)), "label": np.arange(5)}, 2, seed=0)
    >>> batches.steps_per_epoch
    2
    >>> {name: array.shape for name, array in batches.at(7).items()}
    {'inputs': (2, 7), 'label': (2,)}
    """

    def __init__(self, arrays: Mapping[str, Array], batch_size: int, *, seed: int, on_device: bool = False):
        """Makes the function; the arrays are kept, not copied.

        Args:
            arrays: Arrays with one row an example, all of one length N.
            batch_size: Examples a batch, at most N.
            seed: The seed of the order, 0 <= seed < 2 ** 64.
            on_device: Whether to send the arrays to the default device once and to pick the rows there.

        Raises:
            ValueError: If one of them is something else.
        """
        where = type(self).__name__
        count = _count(where, arrays, batch_size)
        if batch_size > count:
            raise bad_argument(where, "batch_size", batch_size, f"at most the {count} examples there are")
        if not 0 <= seed < 2**64:
            raise bad_argument(where, "seed", seed, "in 0 .. 2 ** 64 - 1")
        self.batch_size = batch_size
        self.steps_per_epoch = count // batch_size
        self._arrays = jax.device_put(dict(arrays)) if on_device else dict(arrays)
        self._pick = jax.jit(_rows) if on_device else _rows
        self._count, self._seed = count, seed
        self._order = -1, np.empty(0, np.int64)

    def at(self, step: int) -> dict[str, Array]:
        """The batch of a step.

        Args:
            step: 0, 1, ...; epochs follow one another.

        Returns:
            The rows of each array, under its name.

        Raises:
            ValueError: If the step is negative.
        """
        if step < 0:
            raise bad_argument(f"{type(self).__name__}.at", "step", step, "0 or more")
        epoch, index = divmod(int(step), self.steps_per_epoch)
        chosen = self._permutation(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return self._pick(self._arrays, chosen)

    def _permutation(self, epoch: int) -> np.ndarray:
        # Only a memo of the epoch at hand. Read and replaced as one tuple, so that threads may share the object.
        known, order = self._order
        if known != epoch:
            key = np.array([self._seed, epoch], np.uint64)
            order = np.argsort(np.random.Philox(key=key).random_raw(self._count), kind="stable")
            self._order = epoch, order
        return order


class Batches(ArrayBatches):
    """Training batches of images, as `ArrayBatches` makes them.

    >>> images, labels = np.zeros((5, 8, 8, 1), np.uint8), np.arange(5, dtype=np.int32)
    >>> batches = Batches(images, labels, 2, seed=0)
    >>> batches.steps_per_epoch
    2
    >>> batches.at(7)["image"].shape
    (2, 8, 8, 1)
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int, *, seed: int):
        """Makes the function `at(step)`, whose batches are of `image` (b y x d) uint8 and `label` (b) int32.

        Args:
            images: (N y x d) uint8.
            labels: (N) integers.
            batch_size: Images a batch, at most N.
            seed: The seed of the order, 0 <= seed < 2 ** 64.

        Raises:
            ValueError: If one of them is something else.
        """
        _check("Batches", images, labels, batch_size)
        super().__init__({"image": images, "label": labels.astype(np.int32)}, batch_size, seed=seed)


def eval_array_batches(arrays: Mapping[str, np.ndarray], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every row once, in order, in batches of one shape: the last is filled with zeros and masked.

    Args:
        arrays: Arrays with one row an example, all of one length N.
        batch_size: Examples a batch; may exceed N.

    Returns:
        An iterator of the named arrays and `mask` (b) bool, True where an example is real.

    Raises:
        ValueError: If one of the arguments is something else; at the call, not at the first batch.

    >>> [batch["mask"].tolist() for batch in eval_array_batches({"inputs": np.zeros((3, 4))}, 2)]
    [[True, True], [True, False]]
    """
    count = _count("eval_array_batches", arrays, batch_size)
    return (_padded(arrays, start, batch_size) for start in range(0, count, batch_size))


def eval_batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every image once, in order, as `eval_array_batches` does it.

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
    return eval_array_batches({"image": images, "label": labels.astype(np.int32)}, batch_size)


def _rows(arrays: Mapping[str, Array], chosen: Array) -> dict[str, Array]:
    return {name: array[chosen] for name, array in arrays.items()}


def _padded(arrays: Mapping[str, np.ndarray], start: int, size: int) -> dict[str, np.ndarray]:
    rows = {name: array[start : start + size] for name, array in arrays.items()}
    real = len(next(iter(rows.values())))
    filled = {name: np.pad(row, ((0, size - real), *((0, 0),) * (row.ndim - 1))) for name, row in rows.items()}
    return {**filled, "mask": np.arange(size) < real}


def _count(where: str, arrays: Mapping[str, Array], batch_size: int) -> int:
    """The number of examples, after the checks that hold for any arrays."""
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise bad_argument(where, "arrays", counts, "one or more arrays of the same positive length")
    if batch_size < 1:
        raise bad_argument(where, "batch_size", batch_size, "positive")
    return next(iter(counts.values()))


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
