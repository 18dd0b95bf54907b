"""The files of a saved model of this library: written as a whole, and verified before anything is parsed.

    config.json          {"format": 1, "model": family, "package": ..., "name": ..., "config": {...}, ...}
    model.safetensors    every variable under its dotted path
    manifest.json        {"config.json": {"sha256": ..., "bytes": ...}, "model.safetensors": {...}}

safetensors alone loads a file with a flipped bit as if nothing were wrong; here nothing is parsed before its sha256 is
verified.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import Spec, aligned_empty, check_arrays, model_arrays, specs
from ssmjax.checkpoints.manifest import sha256_of
from ssmjax.checkpoints.safetensors_file import map_file, parse_safetensors, release_map, write_safetensors_files
from ssmjax.models import registry
from ssmjax.models.config import as_json, from_json
from ssmjax.models.family import Family

__all__ = [
    "CONFIG",
    "MANIFEST",
    "WEIGHTS",
    "Stored",
    "abstract",
    "json_bytes",
    "json_object",
    "open_folder",
    "replaced",
]

FORMAT = 1
_PIECE = 2**24  # bytes; a larger array is copied along its first axis, which is a stack's
CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"

_FIELDS = {
    "format": int,
    "model": str,
    "package": str,
    "name": (str, type(None)),
    "config": dict,
    "dtypes": dict,
    "ssmjax_version": str,
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A saved model whose files were looked at and whose arrays were not yet read.

    Attributes:
        family: Its family.
        config: Its configuration.
        specs: `specs(ours)`, our specs with the float types of the files.
        arrays: `arrays(wanted, cast)`, the arrays of these specs, one at a time in buffers of their own; all names and
            shapes are checked before the first. With `cast`, floats may be rounded.
    """

    family: Family
    config: Any
    specs: Callable[[Mapping[str, Spec]], dict[str, Spec]]
    arrays: Callable[[Mapping[str, Spec], bool], Iterator[tuple[str, np.ndarray]]]


def abstract(family: str, config: Any) -> nnx.Module:
    """The model with the shapes of its arrays in place of arrays.

    >>> from ssmjax.models.vim import VimConfig
    >>> abstract("vim", VimConfig(depth=1)).pos_embed.shape
    (1, 197, 192)
    """
    return nnx.eval_shape(lambda: registry.build(family, config))


def checked_arrays(model: nnx.Module, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's arrays, and the specs of those that its configuration makes.

    Raises:
        ValueError: They differ in more than the float types, so that the model could not be loaded again.
    """
    arrays, made = model_arrays(model), model_arrays(abstract(family.name, model.config))
    wanted = specs(made)
    for name in arrays.keys() & made.keys():
        if jnp.issubdtype(arrays[name].dtype, jnp.floating) and jnp.issubdtype(made[name].dtype, jnp.floating):
            wanted[name] = Spec(made[name].shape, arrays[name].dtype)
    remedy = "A model is saved as its configuration makes it; only the float types of its arrays may differ."
    check_arrays("save_pretrained", arrays, wanted, remedy)
    return arrays, made


def write_folder(model: nnx.Module, folder: Path, name: str | None) -> None:
    """Writes the three files of a model into an empty folder.

    Raises:
        ValueError: The model's arrays are not those that its configuration makes.
    """
    from ssmjax import __version__

    family = registry.get_family(registry.family_of(model.config))
    arrays, made = checked_arrays(model, family)
    description = {
        "format": FORMAT,
        "model": family.name,
        "package": family.package,
        "name": name,
        "config": as_json(model.config),
        "dtypes": {key: x.dtype.name for key, x in arrays.items() if x.dtype != made[key].dtype},
        "ssmjax_version": __version__,
    }
    if not description["dtypes"]:
        del description["dtypes"]
    (folder / CONFIG).write_bytes(json_bytes(description))
    write_safetensors_files({folder / WEIGHTS: arrays}, ((key, np.asarray(x)) for key, x in arrays.items()))
    manifest = {file: _fingerprint(folder / file) for file in (CONFIG, WEIGHTS)}
    (folder / MANIFEST).write_bytes(json_bytes(manifest))


def open_folder(folder: Path) -> Stored:
    """A folder that `write_folder` wrote, verified.

    Raises:
        ValueError: It is incomplete or damaged, or does not fit the model it names.
    """
    files = _verified_files(folder)
    family, config, dtypes = _read_config(files[CONFIG], folder / CONFIG)
    where = str(folder / WEIGHTS)
    found = parse_safetensors(files[WEIGHTS], where)

    def stored(ours: Mapping[str, Spec]) -> dict[str, Spec]:
        return {name: Spec(x.shape, dtypes.get(name, x.dtype)) for name, x in ours.items()}

    def arrays(wanted: Mapping[str, Spec], cast: bool) -> Iterator[tuple[str, np.ndarray]]:
        check_arrays(where, found, stored(specs(model_arrays(abstract(family.name, config)))))
        return _copies(found, wanted, files[WEIGHTS])

    return Stored(family, config, stored, arrays)


def _copies(found, wanted, data):
    for name, spec in wanted.items():
        copy = aligned_empty(spec.shape, spec.dtype)
        for part in range(len(copy)) if copy.ndim > 1 and copy.nbytes > _PIECE else [...]:
            copy[part] = found[name][part]
            release_map(data)
        yield name, copy


def _verified_files(folder: Path) -> dict[str, Any]:
    """The contents of the configuration and the weights, after a comparison with the manifest."""
    missing = [name for name in (MANIFEST, CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {', '.join(missing)} missing. A saved model has {CONFIG}, {WEIGHTS} and {MANIFEST}; "
            "a checkpoint of the original PyTorch code is read by ssmjax.checkpoints.from_torch."
        )
    manifest = json_object((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    if set(manifest) != {CONFIG, WEIGHTS}:
        raise ValueError(
            f"{folder / MANIFEST}: must list {CONFIG} and {WEIGHTS}, lists {', '.join(manifest) or 'nothing'}."
        )
    files = {CONFIG: (folder / CONFIG).read_bytes(), WEIGHTS: map_file(folder / WEIGHTS)}
    for name, data in files.items():
        expected, got = manifest[name], {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        release_map(data)
        if expected != got:
            raise ValueError(
                f"{folder / name} is damaged or was exchanged: {MANIFEST} expects {json.dumps(expected)}, got "
                f"{json.dumps(got)}. Download or save the model again."
            )
    return files


def _read_config(data: bytes, path: Path) -> tuple[Family, Any, dict[str, Any]]:
    """The family, the configuration, and the dtypes that are not those of a fresh model, in `config.json`.

    A field that the file lacks was not there when it was written, and takes its default.
    """
    description = json_object(data, path)
    if description.get("format") != FORMAT:
        version = description.get("ssmjax_version")
        raise ValueError(
            f"{path}: format {description.get('format')!r}, wanted {FORMAT}. It was written by ssmjax {version}: "
            "install that version or a newer one."
        )
    description = {"package": "ssmjax", "dtypes": {}} | description  # which not every file has
    for key in description.keys() | _FIELDS.keys():
        if key not in _FIELDS:
            raise ValueError(f"{path}: {errors.unknown_name('field', key, list(_FIELDS))}")
        if not isinstance(description.get(key), _FIELDS[key]):
            raise ValueError(f"{path}: field {key!r} is missing or of a wrong type: {description.get(key)!r}.")
    family = _family(description["model"], description["package"], path)
    try:
        dtypes = {name: jnp.dtype(dtype) for name, dtype in description["dtypes"].items()}
        return family, from_json(family.config, description["config"], "config"), dtypes
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _family(name: str, package: str, path: Path) -> Family:
    """The family that a saved model names, or an error that says which package brings it."""
    try:
        return registry.get_family(name)
    except ValueError as error:
        if package in ("ssmjax", ""):
            raise
        raise ValueError(
            f"{path}: a {name!r} model of the package {package!r}, which is not imported. Import it first "
            f"(`import {package}`), so that it registers its models; or install it, if it is not there."
        ) from error


def json_object(data: bytes, path: Path) -> dict[str, Any]:
    """The object in the bytes of a JSON file.

    Raises:
        ValueError: It is not valid JSON, or no object.

    >>> json_object(b'{"depth": 2}', Path("config.json"))
    {'depth': 2}
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: wanted a JSON object, got a {type(content).__name__}.")
    return content


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON file for people.

    >>> json_bytes({"depth": 2}).decode().splitlines()
    ['{', '  "depth": 2', '}']
    """
    return (json.dumps(content, indent=2) + "\n").encode()


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """An empty folder, which takes the place of `path` when everything was written; nothing is left if that fails.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "model"
    >>> with replaced(target) as folder:
    ...     _ = (folder / "config.json").write_text("{}")
    >>> [file.name for file in target.iterdir()]
    ['config.json']
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        if path.exists():  # moved away first, as a folder cannot be renamed onto a full one
            old = temporary.with_name(f"{temporary.name}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
