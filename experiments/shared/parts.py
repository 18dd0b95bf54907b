"""The parts of an experiment, one training each, which several processes share and which go on where they were cut off.

The same command in several processes, on one machine, shares the work: each takes the next part that nobody is at, and
the one that ends last writes the results.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.shared import common
from ssmjax.checkpoints.lock import FolderLock
from ssmjax.checkpoints.manifest import write_atomically

__all__ = ["Part", "run_parts"]

Work = Callable[[str, int, "Part"], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Part:
    """Where one training is kept, and how long it may take.

    Attributes:
        folder: The folder of its checkpoints.
        ends: The time of `time.monotonic` at which this process stops, None without a limit.
        identity: What its checkpoints must agree with.
    """

    folder: Path
    ends: float | None
    identity: Mapping[str, Any]

    @property
    def seconds_left(self) -> float | None:
        """How long a training may still take."""
        return None if self.ends is None else max(1.0, self.ends - time.monotonic())


def run_parts(name: str, config: Any, kinds: Sequence[str], work: Work) -> tuple[list[dict], dict[str, dict]]:
    """Runs a part for each seed and kind, those that are not done yet and that no other process is at.

    Ends the process, with what is to be done, where parts are missing afterwards.

    Args:
        name: The experiment.
        config: Its settings: `seeds`, `smoke`, `minutes` and `runs_dir` among others.
        kinds: What is trained for each seed.
        work: `work(kind, seed, part)` trains and returns `metrics`, and whatever else is to be kept of it.

    Returns:
        A run a seed, as `make_report` takes it, and what else there is of each part, by `kind_seed`.
    """
    ends = None if config.minutes is None else time.monotonic() + 60 * config.minutes
    seeds = range(1 if config.smoke else config.seeds)
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory()) if config.smoke else config.runs_dir
        folder = Path(own) / f"{name}-{_digest(config)}"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {(seed, kind): folder / f"{kind}_{seed}.json" for seed in seeds for kind in kinds}
        for (seed, kind), file in wanted.items():
            if not file.exists():
                identity = {"experiment": name, "kind": kind, "settings": _digest(config)}
                _run_part(lambda part, k=kind, s=seed: work(k, s, part), Part(file.with_suffix(""), ends, identity))
        missing = [file.stem for file in wanted.values() if not file.exists()]
        if missing:
            print(f"\nWith other processes: {', '.join(missing)}. The last of them writes the results.")
            sys.exit(0)
        found = {each: json.loads(file.read_text()) for each, file in wanted.items()}
    runs = [_run_of(seed, [part for (other, _), part in found.items() if other == seed]) for seed in seeds]
    rest = {f"{kind}_{seed}": part["rest"] for (seed, kind), part in found.items()}
    return runs, rest


def _run_part(work: Callable[[Part], Mapping[str, Any]], part: Part) -> None:
    """Does a part and keeps what it returns, unless another process is at it or has done it."""
    file = part.folder.with_suffix(".json")
    with FolderLock(part.folder.parent, f"{part.folder.name}.lock") as mine:
        if not mine or file.exists():
            return
        if part.ends is not None and time.monotonic() > part.ends:
            print("\nThe minutes are over; the same command goes on.")
            sys.exit(0)
        start = time.monotonic()
        found = dict(work(part))
        seconds = found.pop("seconds", time.monotonic() - start)
        kept = {"metrics": found.pop("metrics"), "seconds": seconds, "rest": found}
        print(f"{file.stem} {json.dumps(kept['metrics'])} {seconds:.0f} s", flush=True)
        write_atomically(file, json.dumps(kept) + "\n")
        shutil.rmtree(part.folder, ignore_errors=True)


def _run_of(seed: int, parts: list[dict]) -> dict[str, Any]:
    metrics = {name: value for part in parts for name, value in part["metrics"].items()}
    return {"seed": seed, "seconds": sum(part["seconds"] for part in parts), "metrics": metrics}


def _digest(config: Any) -> str:
    """Of what makes a part what it is; which other models are compared does not."""
    settings = {key: value for key, value in common.identity(config).items() if key != "models"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
