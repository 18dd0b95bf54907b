"""Saved models for people: a folder with weights, a configuration and checksums, on disk or on the Hugging Face hub.

    config.json          {"format": 1, "model": family, "package": ..., "name": ..., "config": {...}, ...}
    model.safetensors    every variable under its dotted path
    manifest.json        {"config.json": {"sha256": ..., "bytes": ...}, "model.safetensors": {...}}

safetensors alone loads a file with a flipped bit as if nothing were wrong; here nothing is parsed before its sha256 is
verified.
"""

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import (
    check_arrays,
    model_arrays,
    read_safetensors,
    set_model_arrays,
    specs,
    write_safetensors,
)
from ssmjax.models import registry
from ssmjax.models.adapt import adapt_head
from ssmjax.models.config import as_json, from_json, override

__all__ = ["load_pretrained", "save_pretrained"]

logger = logging.getLogger(__name__)

FORMAT = 1
CONFIG, WEIGHTS, MANIFEST = "config.json", "model.safetensors", "manifest.json"


def save_pretrained(model: nnx.Module, path: str | Path, *, name: str | None = None) -> None:
    """Saves a model as a folder that `load_pretrained` reads.

    The folder is written under another name and renamed when it is complete, so that there is never half of one. A
    folder that an earlier call wrote is replaced.

    Args:
        model: A model of a registered family.
        path: The folder.
        name: What to call the model in `config.json`, such as `"vim_tiny"`; only for people.

    Raises:
        ValueError: `path` is a file, or a folder with other files in it.

    >>> import tempfile, ssmjax
    >>> folder = tempfile.mkdtemp()
    >>> ssmjax.save_pretrained(ssmjax.create_model("vim_nano", num_classes=10), folder)
    >>> ssmjax.load_pretrained(folder).config.num_classes
    10
    """
    from ssmjax import __version__

    path = Path(path).absolute()
    _check_replaceable(path)
    family = registry.get_family(registry.family_of(model.config))
    description = {
        "format": FORMAT,
        "model": family.name,
        "package": family.package,
        "name": name,
        "config": as_json(model.config),
        "ssmjax_version": __version__,
    }
    files = {CONFIG: _json_bytes(description), WEIGHTS: write_safetensors(model_arrays(model))}
    files[MANIFEST] = _json_bytes({file: _fingerprint(data) for file, data in files.items()})
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        for file, data in files.items():
            _write_synced(temporary / file, data)
        if path.exists():  # moved away first, as a folder cannot be renamed onto a full one
            old = temporary.with_name(f"{temporary.name}.old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_pretrained(path_or_hub_id: str | Path, *, seed: int = 0, **overrides: Any) -> nnx.Module:
    """Loads a model that `save_pretrained` wrote.

    Args:
        path_or_hub_id: A folder, or `owner/name` on the Hugging Face hub.
        seed: Determines the new parameters of a re-initialized head.
        **overrides: Fields of the model's configuration to change. `num_classes`: another number than saved gives a new
            head. `img_size` (or the patches' stride): position embeddings are interpolated. Whatever else would change
            the shape of a parameter is an error, and so is a field that the parameters were made for, such as the
            `l_max` of an S4 (see `SequenceConfig.parameters_depend_on`).

    Returns:
        The model; its parameters are bit for bit those saved, but for the two cases above.

    Raises:
        ValueError: The folder is missing, incomplete or damaged, or does not fit the model it names; or an override is
            unknown or does not fit the parameters.
        ConnectionError: The hub cannot be reached and holds no copy on this machine.

    >>> import tempfile, ssmjax
    >>> folder = f"{tempfile.mkdtemp()}/my_vim"
    >>> ssmjax.save_pretrained(ssmjax.create_model("vim_nano", depth=1), folder)
    >>> ssmjax.load_pretrained(folder, num_classes=3).config.num_classes
    3
    """
    folder = _local_folder(path_or_hub_id)
    files = _verified_files(folder)
    family, saved = _read_config(files[CONFIG], folder / CONFIG)
    config = override(saved, overrides, f"load_pretrained({str(path_or_hub_id)!r})")
    arrays = read_safetensors(files[WEIGHTS], str(folder / WEIGHTS))
    check_arrays(str(folder / WEIGHTS), arrays, specs(model_arrays(_abstract(family, saved))))
    hooks = registry.get_family(family)
    if config != saved:
        fresh = functools.cache(lambda: model_arrays(registry.build(family, config, seed=seed)))
        arrays = (hooks.adapt or adapt_head)(arrays, saved, config, fresh)
    model = _abstract(family, config)  # without values, which now come
    remedy = (
        f"Only {' and '.join(hooks.adapts) or 'nothing'} may change a shape; train a fresh model with create_model for "
        "the others."
    )
    check_arrays(f"load_pretrained with {overrides}", arrays, specs(model_arrays(model)), remedy)
    _check_dependencies(f"load_pretrained({str(path_or_hub_id)!r})", saved, config)
    set_model_arrays(model, arrays)
    return model


def _check_dependencies(where: str, saved: Any, config: Any) -> None:
    """Raises if the parameters, whose names and shapes fit, were made for another value of a field."""
    made_for, wanted = (getattr(each, "parameters_depend_on", {}) for each in (saved, config))
    for name in made_for.keys() & wanted.keys():
        if made_for[name] != wanted[name]:
            made = f"{made_for[name]!r}, which the saved parameters are made for"
            remedy = f"Load the model as it was saved, or train a fresh one with {name}={wanted[name]!r}."
            raise errors.bad_argument(where, name, wanted[name], made, remedy)


def _abstract(family: str, config: Any) -> nnx.Module:
    """The model with the shapes of its arrays in place of arrays."""
    return nnx.eval_shape(lambda: registry.build(family, config))


# ------------------------------------------------------------------------------------------------------------- files


def _verified_files(folder: Path) -> dict[str, bytes]:
    """The contents of the configuration and the weights, after a comparison with the manifest."""
    missing = [name for name in (MANIFEST, CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {', '.join(missing)} missing. A saved model has {CONFIG}, {WEIGHTS} and {MANIFEST}; "
            "a checkpoint of the original PyTorch code is read by ssmjax.checkpoints.from_torch."
        )
    manifest = _json_object((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    if set(manifest) != {CONFIG, WEIGHTS}:
        raise ValueError(
            f"{folder / MANIFEST}: must list {CONFIG} and {WEIGHTS}, lists {', '.join(manifest) or 'nothing'}."
        )
    files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    for name, data in files.items():
        expected, got = manifest[name], _fingerprint(data)
        if expected != got:
            raise ValueError(
                f"{folder / name} is damaged or was exchanged: {MANIFEST} expects {_show(expected)}, got {_show(got)}. "
                "Download or save the model again."
            )
    return files


def _read_config(data: bytes, path: Path) -> tuple[str, Any]:
    """The family and the configuration in `config.json`.

    A field that the file lacks was not there when it was written, and takes its default.
    """
    description = _json_object(data, path)
    if description.get("format") != FORMAT:
        version = description.get("ssmjax_version")
        raise ValueError(
            f"{path}: format {description.get('format')!r}, wanted {FORMAT}. It was written by ssmjax {version}: "
            "install that version or a newer one."
        )
    known = {"format": int, "model": str, "name": (str, type(None)), "config": dict, "ssmjax_version": str}
    description = {"package": "ssmjax"} | description  # which the files of the first versions lack
    known["package"] = str
    for key in description.keys() | known.keys():
        if key not in known:
            raise ValueError(f"{path}: {errors.unknown_name('field', key, list(known))}")
        if not isinstance(description.get(key), known[key]):
            raise ValueError(f"{path}: field {key!r} is missing or of a wrong type: {description.get(key)!r}.")
    family = _family(description["model"], description["package"], path)
    try:
        return family.name, from_json(family.config, description["config"], "config")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _family(name: str, package: str, path: Path) -> registry.Family:
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


def _json_object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: wanted a JSON object, got a {type(content).__name__}.")
    return content


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _show(fingerprint: Any) -> str:
    return json.dumps(fingerprint)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_replaceable(path: Path) -> None:
    """A new folder, an empty one, or one that holds a saved model and nothing else."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"save_pretrained: {str(path)!r} is a file; give a folder.")
    others = (
        sorted(p.name for p in path.iterdir() if p.name not in (CONFIG, WEIGHTS, MANIFEST)) if path.exists() else []
    )
    if others:
        raise ValueError(
            f"save_pretrained: the folder {str(path)!r} holds other files ({', '.join(others[:3])}); give a new one."
        )
    if path.exists() and any(path.iterdir()) and not (path / MANIFEST).exists():
        raise ValueError(
            f"save_pretrained: the folder {str(path)!r} holds another program's model (no {MANIFEST}); give a new one."
        )


def _local_folder(path_or_hub_id: str | Path) -> Path:
    """The folder itself, or that of a snapshot downloaded from the hub (or kept from an earlier download)."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ValueError(f"load_pretrained: there is no folder {name!r}, and it is no hub name (owner/name) either.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, MANIFEST]))
    except (OSError, HfHubHTTPError) as error:
        raise ConnectionError(
            f"load_pretrained: there is no folder {name!r}, and {name!r} could not be had from the Hugging Face hub: "
            f"{type(error).__name__}: {error}. Check the name and the connection, or download it elsewhere and give "
            "the folder."
        ) from error
