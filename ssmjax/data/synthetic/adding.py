"""The adding task: sum the two marked numbers of a long sequence (Hochreiter & Schmidhuber 1997)."""

import numpy as np

from ssmjax.data.synthetic.streams import stream
from ssmjax.errors import as_int

__all__ = ["adding_batch"]


def adding_batch(seed: int, step: int, *, batch_size: int, length: int) -> dict[str, np.ndarray]:
    """A batch of the adding task: uniform numbers, two of them marked, one in each half; the target is their sum.

    Always answering 1 has a mean squared error of 1/6.

    Args:
        seed: The seed of the task.
        step: The number of the batch; (seed, step) determine it.
        batch_size: b.
        length: l, at least 2; of an odd length the second half is the longer.

    Returns:
        `signal` (b l 2) float32, the numbers in [0, 1) and the marks in {0, 1}, and `target` (b 1) float32.

    Raises:
        ValueError: If a size is not a whole number or is too small, or the seed or the step is out of its range.

    >>> batch = adding_batch(0, 0, batch_size=4, length=9)
    >>> numbers, marks = batch["signal"][..., 0], batch["signal"][..., 1]
    >>> marks[:, :4].sum(1).tolist(), marks[:, 4:].sum(1).tolist()
    ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    """
    batch_size = as_int("adding_batch", "batch_size", batch_size, least=1)
    length = as_int("adding_batch", "length", length, least=2)
    rng = stream("adding_batch", seed, step)
    numbers = rng.random((batch_size, length), np.float32)
    half = length // 2
    marked = np.stack([rng.integers(0, half, batch_size), rng.integers(half, length, batch_size)], axis=1)
    marks = np.zeros_like(numbers)
    np.put_along_axis(marks, marked, 1.0, axis=1)
    target = np.take_along_axis(numbers, marked, axis=1).sum(1, keepdims=True)
    return {"signal": np.stack([numbers, marks], axis=-1), "target": target}
