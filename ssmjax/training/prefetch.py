"""The next batch is made and sent to the device while the current step runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

__all__ = ["Prefetcher"]


class Prefetcher:
    """Makes batches one step ahead, in a thread.

    A batch is a pure function of its step, so that there is no state to save and nothing to skip after a restart.

    Args:
        batch_fn: `batch_fn(step)` returns a pytree of arrays.
        start: The first step.
        stop: The step after the last one.

    >>> with Prefetcher(lambda step: {"x": step * 10}, 3, 5) as batches:
    ...     [int(batches.next()["x"]), int(batches.next()["x"])]
    [30, 40]
    """

    def __init__(self, batch_fn: Callable[[int], Any], start: int, stop: int) -> None:
        self._batch_fn = batch_fn
        self._step, self._stop = start, stop
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: Future[Any] | None = None
        self._submit()

    def next(self) -> Any:
        """Returns the batch of the next step, on the device; an error of `batch_fn` comes up here."""
        if self._ahead is None:
            raise StopIteration(f"There is no batch after that of step {self._stop - 1}.")
        batch = self._ahead.result()
        self._submit()
        return batch

    def _submit(self) -> None:
        step, self._step = self._step, self._step + 1
        self._ahead = self._worker.submit(self._make, step) if step < self._stop else None

    def _make(self, step: int) -> Any:
        return jax.device_put(self._batch_fn(step))

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.shutdown(cancel_futures=True)
