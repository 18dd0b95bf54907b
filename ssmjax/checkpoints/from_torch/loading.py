"""What the loaders of the other implementations' checkpoints share: configuration, file, model."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import set_model_arrays
from ssmjax.checkpoints.torch_file import read_torch_file
from ssmjax.models import registry
from ssmjax.models.config import override

__all__ = ["load_model"]

logger = logging.getLogger(__name__)

Convert = Callable[[Mapping[str, np.ndarray], Any, str], dict[str, np.ndarray]]


def load_model(
    family: str,
    path: str | Path,
    variant: str | Mapping[str, Any],
    convert: Convert,
    config_of: Callable[[Mapping[str, Any]], Any] | None = None,
    *,
    allow_pickle: bool = False,
    overrides: Mapping[str, Any] = {},
) -> Any:
    """Loads a checkpoint file of another layout into a model of a family.

    Args:
        family: The name of the family, which its converter module has, too.
        path: A `.safetensors` file, or one that `torch.save` wrote.
        variant: The name of one of our models, or arguments of the original's constructor for `config_of`.
        convert: Gets the state dict, the configuration and what to call the file; gives arrays by our names.
        config_of: Our configuration for such arguments; None where only names are taken.
        allow_pickle: Whether a file of the second kind may be read; see `read_torch_file`.
        overrides: Fields of the configuration in which this checkpoint differs.

    Raises:
        ValueError: `variant` is of another family, or the file cannot be read or does not fit the configuration.
        ImportError: PyTorch is needed and not installed.
    """
    where, kind = f"from_torch.{family}.load", registry.get_family(family).config
    if config_of is not None and isinstance(variant, Mapping):
        config = config_of(variant)
    else:
        config = registry.model_config(variant)
    if not isinstance(config, kind):
        wanted = f"a {kind.__name__.removesuffix('Config')} model"
        raise errors.bad_argument(where, "variant", variant, wanted)
    config = override(config, overrides, where)
    model = nnx.eval_shape(lambda: registry.build(family, config))
    state = read_torch_file(path, allow_pickle=allow_pickle)
    set_model_arrays(model, convert(state, config, str(path)))
    logger.info("Loaded %d arrays from %s into a model of %r.", len(state), path, family)
    return model
