"""Runs that several processes share: each is made by one of them, and read by the others."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssmjax.checkpoints.lock import FolderLock
from ssmjax.training.report import write_report

__all__ = ["share"]


def share(
    runs: Mapping[Path, Callable[[float | None], dict[str, Any]]], *, deadline: float | None = None, fresh: bool = False
) -> list[dict[str, Any]] | None:
    """Makes the runs that no process has made; the same command, given a second time or beside the first, helps.

    A run belongs to the process that has locked its folder; the system opens the lock when the process ends, however
    it ends. What it returned is `outcome.json` in the folder. While others are at the last runs, this waits for them.

    Args:
        runs: By folder, what makes a run; it gets the minutes that are left, or None, and returns plain values.
        deadline: In seconds of `time.monotonic`; None is none.
        fresh: Whether runs are made anew that have an outcome.

    Returns:
        The outcomes in the order of the runs; None if the deadline came first.
    """
    found: dict[Path, dict[str, Any]] = {}
    while len(found) < len(runs):
        before = len(found)
        for folder, make in runs.items():
            if folder in found:
                continue
            path = folder / "outcome.json"
            if path.is_file() and not fresh:
                found[folder] = json.loads(path.read_text())
                continue
            left = None if deadline is None else (deadline - time.monotonic()) / 60
            if left is not None and left <= 0:
                return None
            with FolderLock(folder, "lock") as mine:  # the training itself holds the folder's usual one
                if mine and (fresh or not path.is_file()):
                    write_report(path, make(left))
                    found[folder] = json.loads(path.read_text())
        if len(found) == before:
            time.sleep(1.0)
    return [found[folder] for folder in runs]
