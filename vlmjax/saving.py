"""Mergers as files, so that a trained one goes with its model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import check_arrays, model_arrays, set_model_arrays, specs
from ssmjax.checkpoints.folder import json_bytes, replaced
from ssmjax.checkpoints.safetensors_file import parse_safetensors, write_safetensors_files
from ssmjax.paths import local_path
from vlmjax.layers.merger import Merger

__all__ = ["load_merger", "save_merger"]

OPTIONS, WEIGHTS = "merger.json", "merger.safetensors"


def save_merger(merger: Merger, path: str | Path) -> None:
    """Saves a merger as a folder of two files, `merger.json` and `merger.safetensors`.

    Args:
        merger: The merger.
        path: The folder; one that an earlier call wrote is replaced.

    Raises:
        ValueError: `path` has other files in it.

    >>> import tempfile
    >>> folder = f"{tempfile.mkdtemp()}/merger"
    >>> save_merger(Merger(8, grid=(2, 2), rngs=nnx.Rngs(0)), folder)
    >>> load_merger(folder).grid
    (2, 2)
    """
    target = local_path("save_merger", "path", path).absolute()
    if target.exists() and not (target.is_dir() and {file.name for file in target.iterdir()} <= {OPTIONS, WEIGHTS}):
        raise errors.bad_argument("save_merger", "path", str(path), "a folder of its own")
    arrays = model_arrays(merger)
    with replaced(target) as folder:
        (folder / OPTIONS).write_bytes(json_bytes(_options(merger)))
        write_safetensors_files({folder / WEIGHTS: arrays}, ((key, np.asarray(x)) for key, x in arrays.items()))


def load_merger(path: str | Path) -> Merger:
    """Loads what `save_merger` wrote.

    Args:
        path: The folder.

    Raises:
        ValueError: It is no such folder, or a damaged one.

    >>> load_merger("nowhere")
    Traceback (most recent call last):
    ValueError: load_merger: path must be a folder that save_merger wrote, got 'nowhere'.
    """
    folder = local_path("load_merger", "path", path)
    if not (folder / OPTIONS).is_file() or not (folder / WEIGHTS).is_file():
        raise errors.bad_argument("load_merger", "path", str(path), "a folder that save_merger wrote")
    try:
        options = json.loads((folder / OPTIONS).read_text())
        options["grid"] = None if options["grid"] is None else tuple(options["grid"])
        merger = Merger(options.pop("d_model"), **options, rngs=nnx.Rngs(0))
    except (ValueError, TypeError, KeyError) as error:
        wanted = f"a folder whose {OPTIONS} save_merger wrote ({error})"
        raise errors.bad_argument("load_merger", "path", str(path), wanted) from error
    found = parse_safetensors((folder / WEIGHTS).read_bytes(), str(folder / WEIGHTS))
    check_arrays("load_merger", found, specs(model_arrays(merger)), "The file is of another merger, or damaged.")
    set_model_arrays(merger, found)
    return merger


def _options(merger: Merger) -> dict[str, Any]:
    hidden, d_model = merger.to_embedding.kernel.shape
    return {
        "d_model": d_model,
        "grid": merger.grid,
        "hidden": hidden,
        "prune": merger.prune,
        "residual": merger.residual,
        "adapt": merger.adapter is not None,
    }
