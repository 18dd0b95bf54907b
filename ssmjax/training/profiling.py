"""A trace of a few steps by `jax.profiler`."""

import logging

import jax

from ssmjax.paths import local_path

__all__ = ["ProfileWindow"]

logger = logging.getLogger(__name__)


class ProfileWindow:
    """Traces some steps of a loop, after the first ones, which compile.

    Args:
        directory: Where the trace goes; None traces nothing.
        first: The first step to trace.
        length: How many steps to trace.
    """

    def __init__(self, directory: str | None, first: int, length: int = 10) -> None:
        self._directory = None if directory is None else local_path("ProfileWindow", "directory", directory)
        self._first, self._end = first, first + length
        self._running = False

    def before(self, step: int) -> None:
        """To be called before each step; starts or ends the trace when it is time."""
        if self._directory is None:
            return
        if step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step == self._end:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            logger.info("The trace lies in %s; `tensorboard --logdir` shows it.", self._directory)

    def __enter__(self) -> "ProfileWindow":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
