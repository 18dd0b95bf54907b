"""Saved models for people: folders on disk, on a bucket, or on the Hugging Face hub.

A model is saved in this library's own form, with checksums (`ssmjax.checkpoints.folder` says what is in it), or in the
form of the Hugging Face hub, for the families that have one (`ssmjax.checkpoints.hf`). Both are recognized.
"""

import contextlib
import functools
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, paths
from ssmjax.checkpoints.arrays import Spec, check_arrays, model_arrays, parameter_names, set_model_arrays, specs
from ssmjax.checkpoints.folder import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    Stored,
    abstract,
    json_object,
    open_folder,
    replaced,
    write_folder,
)
from ssmjax.checkpoints.hf import (
    INDEX,
    PICKLE,
    PICKLE_INDEX,
    SHARD_BYTES,
    WRITTEN,
    is_hf_folder,
    open_hf_folder,
    write_hf_folder,
)
from ssmjax.models import registry
from ssmjax.models.adapt import adapt_head
from ssmjax.models.config import override

__all__ = ["load_pretrained", "save_pretrained"]

logger = logging.getLogger(__name__)

PARAM_DTYPES = ("float32", "bfloat16", "float16")


def save_pretrained(
    model: nnx.Module,
    path: str | Path,
    *,
    name: str | None = None,
    format: str = "ssmjax",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Saves a model as a folder that `load_pretrained` reads.

    The folder is written under another name and renamed when it is complete, so that there is never half of one. A
    folder that an earlier call wrote is replaced.

    Args:
        model: A model of a registered family.
        path: The folder; `~` is the home, and an address such as `gs://bucket/model` is written where fsspec can.
        name: What to call the model in `config.json`, such as `"vim_tiny"`; only for people, and only in the own form.
        format: `"ssmjax"`, the own form, with checksums; or `"hf"`, what the original's users read, for a family that
            has such a form.
        shard_bytes: The most bytes of a file of weights, with `format="hf"`.

    Raises:
        ValueError: `path` is a file, or a folder with other files in it; or the family has no such form.

    >>> import tempfile, ssmjax
    >>> folder = tempfile.mkdtemp()
    >>> ssmjax.save_pretrained(ssmjax.create_model("vim_nano", num_classes=10), folder)
    >>> ssmjax.load_pretrained(folder).config.num_classes
    10
    """
    if format not in ("ssmjax", "hf"):
        raise errors.bad_argument("save_pretrained", "format", format, "'ssmjax' or 'hf'")
    write = functools.partial(write_hf_folder, shard_bytes=shard_bytes) if format == "hf" else None
    address = paths.address_of(path)
    with _uploaded("save_pretrained", address) if address else contextlib.nullcontext() as temporary:
        target = temporary or paths.local_path("save_pretrained", "path", path).absolute()
        _check_replaceable(target, format)
        with replaced(target) as folder:
            write(model, folder) if write else write_folder(model, folder, name)


def load_pretrained(
    path_or_hub_id: str | Path,
    *,
    seed: int = 0,
    param_dtype: DTypeLike | None = None,
    allow_pickle: bool = False,
    parts: Mapping[str, str | Path] | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Loads a model: one that `save_pretrained` wrote, or a folder or name of the Hugging Face hub.

    A folder of the hub is recognized by its `config.json`, if one of the registered families reads such models
    (`HFLayout`). Its files are read through memory maps, one array of the model at a time.

    Args:
        path_or_hub_id: A folder, or `owner/name` on the Hugging Face hub, or an address such as `gs://bucket/model`.
        seed: Determines the new parameters of a re-initialized head.
        param_dtype: The float type of the parameters, `"float32"`, `"bfloat16"` or `"float16"`; None keeps that of the
            files, so that weights in bfloat16 stay as they are. What is computed in is the configuration's `dtype`.
        allow_pickle: Whether a `pytorch_model.bin` may be read where a hub's folder has no safetensors; a pickle can
            run code when it is opened.
        parts: Folders, or names on the hub, of parts of the model that its own folder does not hold (`HFLayout.parts`),
            such as the vision tower of an original LLaVA.
        **overrides: Fields of the model's configuration to change. `num_classes`: another number than saved gives a new
            head. `img_size` (or the patches' stride): position embeddings are interpolated. Whatever else would change
            the shape of a parameter is an error, and so is a field that the parameters were made for, such as the
            `l_max` of an S4 or the discretization of its steps (`parameters_depend_on` of the configurations).

    Returns:
        The model; its parameters are bit for bit those saved, but for the two cases above.

    Raises:
        ValueError: The folder is missing, incomplete or damaged, or does not fit the model it names; or no family reads
            it; or an override is unknown or does not fit the parameters.
        ConnectionError: The hub cannot be reached and holds no copy on this machine.

    >>> import tempfile, ssmjax
    >>> folder = f"{tempfile.mkdtemp()}/my_vim"
    >>> ssmjax.save_pretrained(ssmjax.create_model("vim_nano", depth=1), folder)
    >>> ssmjax.load_pretrained(folder, num_classes=3).config.num_classes
    3
    """
    if param_dtype is not None and jnp.dtype(param_dtype).name not in PARAM_DTYPES:
        wanted = f"{' or '.join(map(repr, PARAM_DTYPES))}, or None"
        raise errors.bad_argument("load_pretrained", "param_dtype", param_dtype, wanted)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_local_folder(path_or_hub_id, allow_pickle))
        given = (parts or {}).items()
        elsewhere = {name: stack.enter_context(_local_folder(place, allow_pickle)) for name, place in given}
        if is_hf_folder(folder):
            stored = open_hf_folder(folder, allow_pickle=allow_pickle, elsewhere=elsewhere)
        elif elsewhere:
            raise errors.bad_argument("load_pretrained", "parts", sorted(elsewhere), "None: this folder is complete")
        else:
            stored = open_folder(folder)
        return _load(stored, f"load_pretrained({str(path_or_hub_id)!r})", seed, param_dtype, overrides)


def _load(stored: Stored, where: str, seed: int, param_dtype: DTypeLike | None, overrides: dict[str, Any]):
    family, saved = stored.family, stored.config
    config = override(saved, overrides, where)
    before = abstract(family.name, saved)
    wanted = stored.specs(specs(model_arrays(before)))
    if param_dtype is not None:
        wanted |= _with_dtype(wanted, parameter_names(before), param_dtype)
    # `device_put` takes over the buffers on a CPU, and frees each where it copies.
    arrays = {name: jax.device_put(x) for name, x in stored.arrays(wanted, param_dtype is not None)}
    model = abstract(family.name, config)  # without values, which now come
    own = specs(model_arrays(model))
    if config != saved:
        fresh = functools.cache(lambda: model_arrays(registry.build(family.name, config, seed=seed)))
        arrays = dict((family.adapt or adapt_head)(arrays, saved, config, fresh))
        # What is new has the float type of what it replaces.
        own = {name: Spec(x.shape, wanted[name].dtype if name in wanted else x.dtype) for name, x in own.items()}
        if param_dtype is not None:
            own |= _with_dtype(own, parameter_names(model), param_dtype)
        arrays = {name: jnp.asarray(x, own[name].dtype) if name in own else x for name, x in arrays.items()}
    else:
        own = wanted
    changeable = " and ".join(family.adapts) or "nothing"
    remedy = f"Only {changeable} may change a shape; train a fresh model with create_model for the others."
    check_arrays(f"load_pretrained with {overrides}", arrays, own, remedy)
    _check_dependencies(where, saved, config)
    set_model_arrays(model, arrays, own)
    return model


def _with_dtype(wanted, names, dtype):
    """The specs of parameters that are floats, with another dtype."""
    floats = [name for name in names if jnp.issubdtype(wanted[name].dtype, jnp.floating)]
    return {name: Spec(wanted[name].shape, jnp.dtype(dtype)) for name in floats}


def _check_dependencies(where: str, saved: Any, config: Any) -> None:
    """Raises if the parameters, whose names and shapes fit, were made for another value of a field."""
    made_for, wanted = (getattr(each, "parameters_depend_on", {}) for each in (saved, config))
    for name in made_for.keys() & wanted.keys():
        if made_for[name] != wanted[name]:
            made = f"{made_for[name]!r}, which the saved parameters are made for"
            remedy = f"Load the model as it was saved, or train a fresh one with {name}={wanted[name]!r}."
            raise errors.bad_argument(where, name, wanted[name], made, remedy)


# ------------------------------------------------------------------------------------------------------------- folders


def _check_replaceable(path: Path, form: str) -> None:
    """A new folder, an empty one, or one that holds a model saved in the same form and nothing else."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"save_pretrained: {str(path)!r} is a file; give a folder.")
    if not path.exists() or not any(path.iterdir()):
        return
    own = (CONFIG, WEIGHTS, MANIFEST)
    inside = filter(Path.is_file, path.rglob("*")) if form == "hf" else path.iterdir()
    names = sorted(file.name for file in inside)
    others = [name for name in names if not (WRITTEN.fullmatch(name) if form == "hf" else name in own)]
    if others:
        raise ValueError(
            f"save_pretrained: the folder {str(path)!r} holds other files ({', '.join(others[:3])}); give a new one."
        )
    ours = (path / MANIFEST).exists()
    if form == "hf" and (path / CONFIG).exists():
        ours = "ssmjax_version" in json_object((path / CONFIG).read_bytes(), path / CONFIG)
    if not ours:
        lacking = f"no {MANIFEST}" if form == "ssmjax" else f"no ssmjax_version in {CONFIG}"
        raise ValueError(
            f"save_pretrained: the folder {str(path)!r} holds another program's model ({lacking}); give a new one."
        )


@contextlib.contextmanager
def _uploaded(where: str, address: str) -> Iterator[Path]:
    """A folder whose content is put at an address when everything was written."""
    system, target = paths.filesystem(where, address)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        if system.exists(target):
            there = sorted(Path(file).name for file in system.ls(target, detail=False))
            if others := [name for name in there if not WRITTEN.fullmatch(name) and name != MANIFEST]:
                raise ValueError(f"{where}: {address} holds other files ({', '.join(others[:3])}); give a new address.")
        yield folder
        if system.exists(target):
            system.rm(target, recursive=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == MANIFEST):  # which comes last, and tells
            system.put_file(str(file), f"{target}/{file.name}")


@contextlib.contextmanager
def _local_folder(path_or_hub_id: str | Path, allow_pickle: bool) -> Iterator[Path]:
    """The folder itself, or one downloaded from an address or the hub (or kept from an earlier download)."""
    address = paths.address_of(path_or_hub_id)
    if address is not None:
        system, source = paths.filesystem("load_pretrained", address)
        if not system.isdir(source):
            raise ValueError(f"load_pretrained: there is no folder {address!r}.")
        with tempfile.TemporaryDirectory() as temporary:
            for file in system.ls(source, detail=False):
                system.get_file(file, f"{temporary}/{Path(file).name}")
            yield Path(temporary)
        return
    folder = paths.local_path("load_pretrained", "path_or_hub_id", path_or_hub_id)
    yield folder if folder.is_dir() else _downloaded(path_or_hub_id, allow_pickle)


def _downloaded(path_or_hub_id: str | Path, allow_pickle: bool) -> Path:
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ValueError(f"load_pretrained: there is no folder {name!r}, and it is no hub name (owner/name) either.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    wanted = [CONFIG, WEIGHTS, MANIFEST, INDEX, "model-*-of-*.safetensors"]
    wanted += [PICKLE, PICKLE_INDEX, "pytorch_model-*-of-*.bin"] if allow_pickle else []
    layouts = [layout for family in registry.families() for layout in registry.hf_layouts(family)]
    wanted += [f"{part}/{file}" for part in {part for layout in layouts for part in layout.parts} for file in wanted]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (OSError, HfHubHTTPError) as error:
        raise ConnectionError(
            f"load_pretrained: there is no folder {name!r}, and {name!r} could not be had from the Hugging Face hub: "
            f"{type(error).__name__}: {error}. Check the name and the connection, or download it elsewhere and give "
            "the folder."
        ) from error
