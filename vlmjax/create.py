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


def load_pretrained(path_or_hub_id: str | Path, *, seed: int = 0, **overrides: Any) -> nnx.Module:
    """Loads a saved model; see `ssmjax.load_pretrained`.

    Args:
        path_or_hub_id: A folder, or `owner/name` on the Hugging Face hub.
        seed: Determines parameters that are new.
        **overrides: Fields of the configuration to change.

    >>> import tempfile
    >>> folder = f"{tempfile.mkdtemp()}/model"
    >>> save_pretrained(create_model("llama_nano", depth=1), folder)
    >>> load_pretrained(folder).config.depth
    1
    """
    return ssmjax.load_pretrained(path_or_hub_id, seed=seed, **overrides)


def save_pretrained(model: nnx.Module, path: str | Path, *, name: str | None = None) -> None:
    """Saves a model as a folder; see `ssmjax.save_pretrained`.

    Args:
        model: A model of a registered family.
        path: The folder.
        name: What to call the model, only for people.

    >>> import tempfile
    >>> save_pretrained(create_model("llama_nano", depth=1), f"{tempfile.mkdtemp()}/model")
    """
    ssmjax.save_pretrained(model, path, name=name)
