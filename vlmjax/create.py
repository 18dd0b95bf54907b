"""Models by name, and saved models: what `ssmjax` has, after the families of this package are registered."""

from pathlib import Path
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

import ssmjax
import vlmjax.models

__all__ = ["create_model", "list_models", "load_pretrained", "save_pretrained"]

FAMILIES = vlmjax.models.__all__
"""Importing them registered the families."""


def create_model(
    name: str, *, seed: int = 0, dtype: DTypeLike | None = None, pretrained: str | None = None, **overrides: Any
) -> nnx.Module:
    """Builds a model by name; see `ssmjax.create_model`.

    Args:
        name: One of `list_models()`, such as `"llava_nano"`.
        seed: Determines the initial parameters.
        dtype: What to compute in.
        pretrained: A folder of `save_pretrained`, or a name on the Hugging Face hub.
        **overrides: Further fields of the family's configuration.

    Raises:
        ValueError: The name or an option is unknown, or a value does not fit.

    >>> create_model("llama_nano", depth=2).config.depth
    2
    """
    return ssmjax.create_model(name, seed=seed, dtype=dtype, pretrained=pretrained, **overrides)


def list_models(pattern: str = "*") -> list[str]:
    """The names of this package's models and of those of `ssmjax`, sorted.

    Args:
        pattern: A shell pattern.

    >>> list_models("llava_n*")
    ['llava_nano']
    """
    return ssmjax.list_models(pattern)


def load_pretrained(
    path_or_hub_id: str | Path,
    *,
    seed: int = 0,
    param_dtype: DTypeLike | None = None,
    allow_pickle: bool = False,
    vision_tower: str | Path | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Loads a saved model; see `ssmjax.load_pretrained`.

    What is read: the own form; transformers' folders of CLIP, SigLIP, Llama, Qwen2, LLaVA and LLaVA-NeXT, in the names
    and the `config.json` of its versions 4 and 5; the original repositories' folders of LLaVA (also of VILA 1.0) and
    of VILA 1.5 and NVILA with their three parts.

    Args:
        path_or_hub_id: A folder, or `owner/name` on the Hugging Face hub.
        seed: Determines parameters that are new.
        param_dtype: The float type of the parameters; None keeps that of the files.
        allow_pickle: Whether `pytorch_model.bin` may be read, or its shards, where there are no safetensors; a pickle
            can run code when it is opened.
        vision_tower: The folder or name of the vision tower of an original LLaVA, which does not hold it.
        **overrides: Fields of the configuration to change.

    Raises:
        ValueError: The folder is damaged, or holds another model or another era's files than it says.

    >>> import tempfile
    >>> folder = f"{tempfile.mkdtemp()}/model"
    >>> save_pretrained(create_model("llama_nano", depth=1), folder)
    >>> load_pretrained(folder).config.depth
    1
    """
    parts = None if vision_tower is None else {"vision_tower": vision_tower}
    options = dict(param_dtype=param_dtype, allow_pickle=allow_pickle, parts=parts)
    return ssmjax.load_pretrained(path_or_hub_id, seed=seed, **options, **overrides)


def save_pretrained(
    model: nnx.Module, path: str | Path, *, name: str | None = None, format: str = "ssmjax", **options: Any
) -> None:
    """Saves a model as a folder; see `ssmjax.save_pretrained`.

    Args:
        model: A model of a registered family.
        path: The folder.
        name: What to call the model, only for people.
        format: `"ssmjax"`, or `"hf"` for a folder that transformers loads.
        **options: What else `ssmjax.save_pretrained` takes.

    >>> import tempfile
    >>> save_pretrained(create_model("llama_nano", depth=1), f"{tempfile.mkdtemp()}/model", format="hf")
    """
    ssmjax.save_pretrained(model, path, name=name, format=format, **options)
