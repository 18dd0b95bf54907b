"""What every experiment shares: its command line, its run folder, its compute type and its results file."""

import dataclasses
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssmjax.checkpoints.store import CheckpointError
from ssmjax.data import DataUnavailable
from ssmjax.training.guards import TrainingDiverged

__all__ = [
    "PATHS",
    "accelerator_dtype",
    "command",
    "config_digest",
    "identity",
    "kept",
    "require_writable",
    "result_paths",
    "run_cli",
]

RESULTS = Path("experiments/results")
FIGURES = Path("figures")

PATHS = ("data_dir", "download_dir", "out_dir", "runs_dir", "folder", "pretrained")
_NOT_IDENTITY = (*PATHS, "seeds", "minutes", "resume", "progress", "tensorboard", "profile")


def run_cli(main: Callable[[Any], Any], config: type) -> None:
    """Runs an experiment from the command line; what a user can put right ends in one message, not a traceback.

    Exit codes: 2 for a wrong argument or missing data, 3 for a diverged run, 4 for checkpoints that cannot be used.
    Set `SSMJAX_TRACEBACK=1` to see the traceback all the same.

    Args:
        main: The experiment, a function of its configuration.
        config: The configuration's dataclass, whose fields become flags.
    """
    import tyro

    parsed = tyro.cli(config, description=sys.modules[main.__module__].__doc__)
    codes = {DataUnavailable: 2, ValueError: 2, NotImplementedError: 2, TrainingDiverged: 3, CheckpointError: 4}
    try:
        main(parsed)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command starts again from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
    except tuple(codes) as error:
        if os.environ.get("SSMJAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(next(code for kind, code in codes.items() if isinstance(error, kind)))


def require_writable(flag: str, folder: Path) -> None:
    """Makes a folder, so that one that cannot be written to is an error before the training, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"Give a folder that can be written to with --{flag.replace('_', '-')}."
        raise ValueError(f"{flag}: {str(folder)!r} cannot be written to ({error}). {remedy}") from error


def accelerator_dtype() -> str:
    """The compute type that suits this machine: bfloat16 where it is native, else float32.

    TPUs and GPUs of compute capability 8.0 and later (A100, L4, Hopper) have bfloat16; a T4 and a CPU do not.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return "float32"
    cuda = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))  # ROCm says "gfx942"
    return "float32" if cuda and int(cuda[1]) < 8 else "bfloat16"


def identity(config: Any) -> dict[str, Any]:
    """The fields that make a training run what it is, without those that only say where and how it is watched."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in _NOT_IDENTITY}


def config_digest(config: Any) -> str:
    """Eight hex digits: equal for the same training run, different for another one."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]


def command(name: str, config: Any, default: Any) -> str:
    """The command line of a configuration: the fields that differ from the defaults, without folders and display."""
    flags = []
    owners = [vars(kind).get("__annotations__", {}) for kind in type(config).__mro__]

    def rank(field: dataclasses.Field[Any]) -> int:  # an experiment's own settings come before those of all experiments
        return next(i for i, names in enumerate(owners) if field.name in names)

    for field in sorted(dataclasses.fields(config), key=rank):
        value = getattr(config, field.name)
        if value == getattr(default, field.name) or field.name in (*PATHS, "minutes", "progress"):
            continue
        flag = field.name.replace("_", "-")
        words = " ".join(map(str, value)) if isinstance(value, tuple) else value
        flags.append(f"--no-{flag}" if value is False else f"--{flag}" if value is True else f"--{flag} {words}")
    return " ".join([f"python -m experiments.{name}", *flags])


def result_paths(out_dir: Path, name: str) -> tuple[Path, Path]:
    """Where an experiment writes: `experiments/results/<name>.json` and `figures/<name>.png` under `out_dir`."""
    return out_dir / RESULTS / f"{name}.json", out_dir / FIGURES / f"{name}.png"


def kept(path: Path, draw: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a file, which the first call makes; written under another name first, so that it is never partial.

    Args:
        path: The npz file.
        draw: Makes the arrays.
    """
    if path.is_file():
        with np.load(path) as stored:
            return dict(stored)
    print(f"Drawing {path}")
    arrays = draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.npz")
    np.savez(part, **arrays)
    os.replace(part, path)
    return arrays
