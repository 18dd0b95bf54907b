"""Results: one JSON file a claim, with all that is needed to repeat it, and a table for the terminal."""

import importlib.metadata
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ssmjax
from ssmjax.checkpoints.manifest import write_atomically
from ssmjax.paths import local_path

__all__ = ["environment", "make_report", "render_table", "summarize", "write_report"]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of one metric over seeds, its spread (the sample's standard deviation) and the values.

    >>> summarize([1.0, 2.0, 3.0])
    {'mean': 2.0, 'spread': 1.0, 'values': [1.0, 2.0, 3.0]}
    """
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread, "values": list(values)}


def environment() -> dict[str, Any]:
    """Returns the commit of the code (None outside a git clone), the device, and the versions of what computes.

    >>> sorted(environment())
    ['commit', 'device', 'versions']
    """
    devices = jax.devices()
    versions = {"python": platform.python_version(), "ssmjax": ssmjax.__version__}  # also where it is not installed
    return {
        "commit": _commit(),
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "versions": versions | {name: _version(name) for name in _PACKAGES},
    }


def make_report(
    name: str, *, command: str, config: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], **details: Any
) -> dict[str, Any]:
    """Puts a result together.

    Args:
        name: The name of the experiment.
        command: The command that repeats it.
        config: Its whole configuration.
        runs: One mapping a seed, of `seed`, `seconds` and `metrics`, a mapping of names to numbers.
        **details: What else the claim rests on, such as the data set and its checksum.

    Returns:
        The report, of plain values only.

    Raises:
        ValueError: There is no run, or the runs have different metrics.

    >>> runs = [{"seed": seed, "seconds": 9.0, "metrics": {"accuracy": 0.5 + seed / 4}} for seed in (0, 1)]
    >>> make_report("demo", command="python -m demo", config={}, runs=runs)["metrics"]["accuracy"]["mean"]
    0.625
    """
    names = list(runs[0]["metrics"]) if runs else []
    if not runs or any(set(run["metrics"]) != set(names) for run in runs):
        raise ValueError(f"make_report: `runs` must be at least one run, all with the same metrics, got {runs!r}.")
    return _plain(
        {
            "name": name,
            "command": command,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            **environment(),
            "config": config,
            **details,
            "seeds": [run["seed"] for run in runs],
            "metrics": {metric: summarize([float(run["metrics"][metric]) for run in runs]) for metric in names},
            "seconds": summarize([float(run["seconds"]) for run in runs]),
        }
    )


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON, atomically, and makes the folder if it is missing.

    >>> import tempfile
    >>> write_report(f"{tempfile.mkdtemp()}/results/demo.json", {"name": "demo"})
    """
    path = local_path("write_report", "path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")


def render_table(report: Mapping[str, Any]) -> str:
    """Renders the metrics of a report for the terminal, one a line.

    >>> report = {"name": "demo", "seeds": [0, 1], "metrics": {"accuracy": summarize([0.5, 0.75])},
    ...           "seconds": summarize([10.0, 12.0])}
    >>> print(render_table(report))
    demo        mean    spread  seeds
    accuracy  0.6250    0.1768      2
    seconds   11.000    1.4142      2
    """
    rows = {**report["metrics"], "seconds": report["seconds"]}
    width = max(map(len, (report["name"], *rows)))

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:#.5g}" if abs(value) >= 1 else f"{value:.4f}"

    lines = [f"{report['name']:<{width}}  {'mean':>6}  {'spread':>8}  seeds"]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}  {number(row['mean']):>6}  {number(row['spread']):>8}  {len(row['values']):>5}")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """The same as plain JSON values; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this file's clone, with `-dirty` if tracked files differ from it."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in someone else's clone
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
