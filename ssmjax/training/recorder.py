"""The record of a run: one JSON object a line, TensorBoard beside it if wanted."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmjax.checkpoints.manifest import write_atomically
from ssmjax.paths import local_path

__all__ = ["Recorder", "read_records"]


def read_records(path: str | Path) -> list[dict[str, Any]]:
    r"""Reads the records of a run.

    Args:
        path: The file; a line cut off by a crash ends what is read.

    Returns:
        The records, oldest first; values that are not finite are NaN.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> _ = path.write_text('{"kind": "train", "step": 1, "loss": 0.5}\n{"kind": "tr')
    >>> read_records(path)
    [{'kind': 'train', 'step': 1, 'loss': 0.5}]
    """
    records = []
    for line in local_path("read_records", "path", path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append({name: math.nan if value is None else value for name, value in record.items()})
    return records


class Recorder:
    """Appends records to a file and keeps them for the run's history.

    Each line reaches the operating system before `write` returns, so that a killed process loses none.

    Args:
        path: The JSON lines file; None keeps the records in memory only.
        start: The number of steps done before. Records of later steps, left by a process that died after its last save,
            are dropped, so that no step is recorded twice.
        tensorboard_dir: A folder for TensorBoard; needs `tensorboardX`.

    Attributes:
        records: All records, those of earlier processes too.

    >>> recorder = Recorder(None)
    >>> recorder.write("train", 1, {"loss": 0.5})
    >>> recorder.records
    [{'kind': 'train', 'step': 1, 'loss': 0.5}]
    """

    def __init__(self, path: str | Path | None, start: int = 0, tensorboard_dir: str | Path | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self._file = self._board = None
        if path is not None:
            path = local_path("Recorder", "path", path)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self.records = [record for record in read_records(path) if record["step"] <= start]
            write_atomically(path, "".join(map(_line, self.records)))
            self._file = open(path, "a", encoding="utf-8", buffering=1)
        if tensorboard_dir is not None:
            from tensorboardX import SummaryWriter  # optional

            self._board = SummaryWriter(
                str(local_path("Recorder", "tensorboard_dir", tensorboard_dir)), purge_step=start + 1
            )

    def write(self, kind: str, step: int, values: Mapping[str, int | float]) -> None:
        """Writes one record.

        Args:
            kind: `"train"` or `"eval"`.
            step: The number of steps done.
            values: What to record, numbers only.
        """
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        if self._file is not None:
            self._file.write(_line(record))
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Returns the records of one kind."""
        return [record for record in self.records if record["kind"] == kind]

    def sync(self) -> None:
        """Forces what was written to the disk, before a checkpoint that counts on it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _line(record: Mapping[str, Any]) -> str:
    """One line of JSON; it knows no NaN, so null stands for whatever is not finite."""
    finite = {n: v if not isinstance(v, float) or math.isfinite(v) else None for n, v in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"
