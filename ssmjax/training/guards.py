"""What may end a run early: a signal, which saves first, and values that are not finite, which report why."""

import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

__all__ = ["StopSignals", "TrainingDiverged", "check_finite"]


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or gradients that are not finite.

    Attributes:
        report: The numbers of the message, ready for JSON.
    """

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


class StopSignals:
    """Notes SIGTERM and SIGINT (Ctrl-C) instead of dying, so that the loop can finish its step and save.

    The handlers from before come back with the first signal, so that a second one ends the process as usual, and at the
    end. In a thread other than the main one signals cannot be handled, and nothing is changed.

    Attributes:
        received: The number of the signal, None as long as there is none.

    >>> with StopSignals() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    ...     stop.received
    2
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            # None stands for a handler that was not set from Python; there is no way back to such a one.
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def check_finite(step: int, metrics: Mapping[str, int | float], max_bad_steps: int) -> None:
    """Ends the training if the step has seen too many bad steps in a row.

    Args:
        step: The number of steps done.
        metrics: The metrics of the last of them, from `make_step`.
        max_bad_steps: How many are too many.

    Raises:
        TrainingDiverged: There were so many.

    >>> check_finite(100, {"loss": 0.5, "bad_steps": 2, "bad_streak": 1}, max_bad_steps=10)
    """
    streak = int(metrics["bad_streak"])
    if streak < max_bad_steps:
        return
    first = step - streak + 1
    report = {"first_bad_step": first, "bad_steps_in_a_row": max_bad_steps, "bad_steps": int(metrics["bad_steps"])}
    values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if not name.startswith("bad_"))
    raise TrainingDiverged(
        f"Training diverged: the loss or the gradients were not finite in {max_bad_steps} steps in a row, from step "
        f"{first} on ({values}). All of them were skipped, so the parameters are still those of step {first - 1}. "
        "Likely causes: a learning rate that is too high or without warm-up, float16 out of range, or a NaN in the "
        "data. Lower the learning rate, use bfloat16 or float32, or check the batches from there on.",
        {**report, **{name: value for name, value in metrics.items() if name not in report}},
    )
