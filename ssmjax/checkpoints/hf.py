"""Folders of the Hugging Face form: `config.json`, and safetensors in one file or in shards with an index.

What they hold is said by the family's `HFLayout` (`ssmjax.models.Family`): which `config.json` is its own, the
configuration, and the key table. The files are read through memory maps, so that beside the weights of the model about
one array is in memory.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import Spec, parameter_names
from ssmjax.checkpoints.folder import CONFIG, MANIFEST, WEIGHTS, Stored, checked_arrays, json_bytes, json_object
from ssmjax.checkpoints.safetensors_file import SafetensorsFile, write_safetensors_files
from ssmjax.checkpoints.torch_file import read_torch_file
from ssmjax.models import registry
from ssmjax.models.family import Family, HFLayout

__all__ = ["INDEX", "is_hf_folder", "open_hf_folder", "write_hf_folder"]

INDEX = f"{WEIGHTS}.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = f"{PICKLE}.index.json"
SHARD_BYTES = 5_000_000_000

WRITTEN = re.compile(r"config\.json|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
"""The names of the files that are written."""


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder holds a `config.json` that is not one of this library's own form."""
    if (folder / MANIFEST).is_file() or not (folder / CONFIG).is_file():
        return False
    return not {"format", "ssmjax_version"} <= json_object((folder / CONFIG).read_bytes(), folder / CONFIG).keys()


def open_hf_folder(folder: Path, *, allow_pickle: bool = False, elsewhere: Mapping[str, Path] | None = None) -> Stored:
    """A folder of the Hugging Face form, of a family that is registered.

    Args:
        folder: The folder.
        allow_pickle: Whether a `pytorch_model.bin` may be read where there are no safetensors.
        elsewhere: Folders of parts of the model (`HFLayout.parts`) that are not below this one.

    Raises:
        ValueError: No family reads such a `config.json`, or a file is missing, damaged or outside of the folder.
    """
    description = json_object((folder / CONFIG).read_bytes(), folder / CONFIG)
    family, layout = _recognized(description, folder / CONFIG)
    places = _places(folder, layout, elsewhere or {})
    for name, place in places.items():
        if name and (place / CONFIG).is_file():
            description[f"{name}_cfg"] = json_object((place / CONFIG).read_bytes(), place / CONFIG)
    with _named(folder / CONFIG):
        config = layout.read(description)
    files, source = _open_parts(places, layout, allow_pickle)
    if layout.check is not None:
        with _named(folder):
            layout.check(description, source.keys())
    table = layout.table(config)

    def stored(ours: Mapping[str, Spec]) -> dict[str, Spec]:
        return table.stored_specs(source, ours, str(folder))

    def release() -> None:
        for file in files:
            file.release()

    def arrays(wanted: Mapping[str, Spec], cast: bool) -> Iterator[tuple[str, np.ndarray]]:
        return table.iter_ours(source, wanted, str(folder), cast=cast, release=release)

    return Stored(family, config, stored, arrays)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Puts the name of what is read before the message of an error."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"{path}: {error}") from error


def _places(folder: Path, layout: HFLayout, elsewhere: Mapping[str, Path]) -> dict[str, Path]:
    """The folders of the parts that there are, and under `""` the folder itself, if it holds weights."""
    if unknown := [name for name in elsewhere if name not in layout.parts]:
        raise ValueError(f"{folder}: {errors.unknown_name('part of the model', unknown[0], list(layout.parts))}")
    places = {"": folder} if not layout.parts or _has_weights(folder) else {}
    below = {name: folder / name for name in layout.parts if (folder / name).is_dir()}
    return places | below | dict(elsewhere)


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX, PICKLE, PICKLE_INDEX))


def _open_parts(
    places: Mapping[str, Path], layout: HFLayout, allow_pickle: bool
) -> tuple[list[SafetensorsFile], dict[str, np.ndarray]]:
    """The open files of a model and its parts, and views of their arrays by name."""
    files, source = [], {}
    for name, place in places.items():
        opened, arrays = _open_weights(place, allow_pickle)
        files += opened
        if name:
            part = layout.parts[name]
            mine = [each for each in arrays if each.startswith(part.side)] or list(arrays)
            arrays = {part.prefix + each: arrays[each] for each in mine}
        source |= arrays
    return files, source


def _recognized(description: Mapping[str, Any], path: Path) -> tuple[Family, HFLayout]:
    """The family that a `config.json` belongs to."""
    found = _accepting(description)
    if not found and registry.load_plugins():
        found = _accepting(description)
    kind, classes = description.get("model_type"), description.get("architectures")
    what = f"{path}: a model of the type {kind!r} (architectures {classes!r})"
    if not found:
        known = sorted({name for family in registry.families() for each in _layouts(family) for name in each.types})
        if kind in known:
            raise ValueError(f"{what}, which do not belong together: correct the file, or take another folder's.")
        raise ValueError(
            f"{what}, which no registered family reads.{errors.did_you_mean(str(kind), known)} Known types: "
            f"{', '.join(known) or 'none'}. A family of another package is known once that package is imported "
            "(`import vlmjax` for vision and language models)."
        )
    if len(found) > 1:
        raise ValueError(f"{what}, which several families read: {', '.join(family.name for family, _ in found)}.")
    return found[0]


def _accepting(description: Mapping[str, Any]) -> list[tuple[Family, HFLayout]]:
    return [(family, each) for family in registry.families() for each in _layouts(family) if each.accepts(description)]


_layouts = registry.hf_layouts


# -------------------------------------------------------------------------------------------------------------- reading


def _open_weights(folder: Path, allow_pickle: bool) -> tuple[list[SafetensorsFile], dict[str, np.ndarray]]:
    """The open files, and views of their arrays by name."""
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    if (folder / WEIGHTS).is_file():
        file = SafetensorsFile(folder / WEIGHTS)
        return [file], file.arrays
    if (folder / PICKLE_INDEX).is_file():
        names = sorted(set(_weight_map(folder, PICKLE_INDEX, ".bin").values()))
        shards = [read_torch_file(folder / name, allow_pickle=allow_pickle) for name in names]
        return [], {name: x for shard in shards for name, x in shard.items()}
    if (folder / PICKLE).is_file():
        return [], read_torch_file(folder / PICKLE, allow_pickle=allow_pickle)
    raise ValueError(f"{folder}: holds no weights; wanted {WEIGHTS}, or shards with {INDEX}, or {PICKLE}.")


def _open_shards(folder: Path) -> tuple[list[SafetensorsFile], dict[str, np.ndarray]]:
    path = folder / INDEX
    places = _weight_map(folder, INDEX, ".safetensors")
    names = sorted(set(places.values()))
    files = {name: SafetensorsFile(folder / name) for name in names}
    problems = [f"{name} is not in {file}" for name, file in places.items() if name not in files[file].arrays]
    problems += [
        f"{name} in {file} is not in the index"
        for file, opened in files.items()
        for name in opened.arrays
        if places.get(name) != file
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{path}: does not fit the files: {'; '.join(problems[:8])}{more}.")
    return list(files.values()), {name: files[file].arrays[name] for name, file in places.items()}


def _weight_map(folder: Path, index: str, suffix: str) -> dict[str, str]:
    """Which array is in which file, as an index says it; all of the files are there."""
    path = folder / index
    places = json_object(path.read_bytes(), path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path}: 'weight_map' must say for each array in which file it is, got {places!r}.")
    # Compared as text, and not resolved: the hub's own cache is made of links to other folders.
    foreign = sorted({str(file) for file in places.values() if not _is_plain_name(file, suffix)})
    if foreign:
        raise ValueError(f"{path}: files must be {suffix} in the same folder, got {', '.join(foreign)}.")
    names = sorted(set(places.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder}: {', '.join(missing)} missing, of the {len(names)} files that {index} lists. Download the model "
            "again."
        )
    return places


def _is_plain_name(file: Any, suffix: str) -> bool:
    return isinstance(file, str) and re.fullmatch(rf"[\w][\w.-]*{re.escape(suffix)}", file) is not None


# -------------------------------------------------------------------------------------------------------------- writing


def write_hf_folder(model: nnx.Module, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a model in the Hugging Face form into an empty folder.

    Args:
        model: A model of a family that has such a form.
        folder: The folder.
        shard_bytes: The most bytes of arrays in one file; an array larger than that has a file of its own.

    Raises:
        ValueError: The family has no such form.
    """
    from ssmjax import __version__

    family = registry.get_family(registry.family_of(model.config))
    layouts = _layouts(family)
    if not layouts:
        others = ", ".join(each.name for each in registry.families() if _layouts(each)) or "none"
        raise ValueError(
            f"save_pretrained: the family {family.name!r} has no Hugging Face form; families that have one: {others}. "
            'Leave out format="hf".'
        )
    table, (arrays, _) = layouts[0].table(model.config), checked_arrays(model, family)
    wanted = table.source_specs(arrays)
    description = dict(layouts[0].write(model.config)) | {"ssmjax_version": __version__}
    kinds = {arrays[name].dtype.name for name in parameter_names(model)}
    if len(kinds) == 1 and not {"dtype", "torch_dtype"} & description.keys():
        description["torch_dtype"] = kinds.pop()
    (folder / CONFIG).write_bytes(json_bytes(description))
    if not layouts[0].parts:
        _write_weights(folder, wanted, table.iter_source(arrays), shard_bytes)
    for name, part in layouts[0].parts.items():
        place, start = folder / name, len(part.prefix)
        place.mkdir()
        (place / CONFIG).write_bytes(json_bytes(description[f"{name}_cfg"]))
        mine = {each[start:]: spec for each, spec in wanted.items() if each.startswith(part.prefix)}
        pairs = ((each[start:], x) for each, x in table.iter_source(arrays) if each.startswith(part.prefix))
        _write_weights(place, mine, pairs, shard_bytes)


def _write_weights(
    folder: Path, wanted: Mapping[str, Spec], arrays: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> None:
    shards = _shards(wanted, shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    files = {folder / name: shard for name, shard in zip(names, shards, strict=True)}
    write_safetensors_files(files, arrays, {"format": "pt"})  # without which others refuse it
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(_size, wanted.values()))},
            "weight_map": {name: file.name for file, shard in files.items() for name in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(wanted: Mapping[str, Spec], shard_bytes: int) -> list[dict[str, Spec]]:
    shards: list[dict[str, Spec]] = [{}]
    filled = 0
    for name in sorted(wanted):
        if shards[-1] and filled + _size(wanted[name]) > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = wanted[name]
        filled += _size(wanted[name])
    return shards


def _shard_name(i: int, number: int) -> str:
    return f"model-{i + 1:05d}-of-{number:05d}.safetensors"


def _size(spec: Spec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
