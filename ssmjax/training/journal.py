"""What the loop tells about itself: records, progress bar, and the guard against values that are not finite.

The loop must not wait for the device. Metrics are therefore fetched one record late, when they are long there.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from ssmjax.training.guards import check_finite
from ssmjax.training.recorder import Recorder
from ssmjax.training.step import Batch, Metrics

__all__ = ["Journal"]


class Journal:
    """Turns the metrics of steps into records, in order.

    Args:
        recorder: Where the records go.
        start: The number of steps done before.
        steps: How many there are in all.
        max_bad_steps: How many bad steps in a row end the training.
        progress: Whether to show a progress bar.
        unit: What an example is called there.
    """

    def __init__(
        self, recorder: Recorder, start: int, steps: int, *, max_bad_steps: int, progress: bool, unit: str
    ) -> None:
        self._recorder, self._max_bad_steps, self._unit = recorder, max_bad_steps, unit
        self._pending: tuple[int, Metrics, float] | None = None
        self._rate = math.nan
        self._examples = 0
        self._clock: tuple[int, float] | None = None
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=not progress, dynamic_ncols=True)

    def compiling(self, batch: Batch) -> None:
        """Says that the first step takes longer, and notes how many examples a batch has."""
        self._examples = np.shape(jax.tree.leaves(batch)[0])[0]
        self._bar.set_postfix_str("compiling")

    def tick(self) -> None:
        """Moves the bar by one step."""
        self._bar.update()

    def log(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step to be recorded, and records those taken before."""
        self.flush()
        # Read after the record before was waited for, so that it keeps pace with the device. There is no rate for the
        # first record after a start, an evaluation or a save: nothing was waited for in between.
        now = time.perf_counter()
        if self._clock is not None:
            before, since = self._clock
            self._rate = round(self._examples * (step - before) / (now - since), 1)
        self._pending = (step, metrics, math.nan if self._clock is None else self._rate)
        self._clock = (step, now)

    def flush(self) -> None:
        """Records what is pending.

        Raises:
            TrainingDiverged: Too many steps in a row were bad.
        """
        if self._pending is None:
            return
        (step, metrics, rate), self._pending = self._pending, None
        values = self._fetch(step, metrics)
        self._recorder.write("train", step, {**values, f"{self._unit}_per_second": rate})
        speed = "" if math.isnan(self._rate) else f", {self._rate:,.0f} {self._unit}/s"
        bad = f", {values['bad_steps']} bad steps" if values["bad_steps"] else ""
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}{speed}{bad}", refresh=False)

    def settle(self, step: int, metrics: Metrics) -> None:
        """Waits for a step, records what is pending, and raises if too many steps in a row were bad."""
        self.flush()
        self._fetch(step, metrics)

    def _fetch(self, step: int, metrics: Metrics) -> dict[str, int | float]:
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        check_finite(step, values, self._max_bad_steps)
        return values

    def evaluated(self, step: int, values: Mapping[str, Any]) -> None:
        """Records the numbers of an evaluation; arrays, such as a confusion matrix, are left out."""
        numbers = {name: np.asarray(value).item() for name, value in values.items() if np.ndim(value) == 0}
        self._recorder.write("eval", step, numbers)
        self.skip_time()

    def skip_time(self) -> None:
        """Leaves the time of an evaluation or a save out of the rate."""
        self._clock = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
