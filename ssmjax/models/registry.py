"""Models by name.

A family is one module under `ssmjax.models`, found and imported on first use; on import it registers its family (a
configuration class and a module class) and its named sizes.
"""

import dataclasses
import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.models.config import override

__all__ = [
    "Family",
    "Model",
    "build",
    "create_model",
    "families",
    "family_of",
    "get_family",
    "list_models",
    "model_config",
    "register_family",
    "register_model",
]


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        name: Its name, which a saved model carries.
        config: The configuration class, a frozen dataclass.
        build: `build(config, rngs=...)`, usually the module class.
        input_shape: `input_shape(config, batch)`, the shape of an input: what summaries and registry-wide tests feed.
        tiny: Configuration fields that make any of its models small enough to run in a test.
        input_dtype: `input_dtype(config)`, the dtype of that input: int32 for a model of tokens.
    """

    name: str
    config: type
    build: Callable[..., nnx.Module]
    input_shape: Callable[[Any, int], tuple[int, ...]]
    tiny: Mapping[str, Any]
    input_dtype: Callable[[Any], DTypeLike] = lambda config: jnp.float32


@dataclasses.dataclass(frozen=True)
class Model:
    """A named size: the name, its family's name, and the configuration."""

    name: str
    family: str
    config: Any


_families: dict[str, Family] = {}
_models: dict[str, Model] = {}


def register_family(family: Family) -> None:
    """Adds a family."""
    _families[family.name] = family


def register_model(name: str, family: str, config: Any) -> None:
    """Adds a named size of a registered family.

    >>> from ssmjax.models.vim import VimConfig
    >>> register_model("vim_pico", "vim", VimConfig(img_size=8, patch_size=4, d_model=16, depth=2))
    >>> create_model("vim_pico").config.depth
    2
    """
    if family not in _families:
        raise errors.unknown_name("model family", family, sorted(_families))
    if not isinstance(config, _families[family].config):
        raise errors.bad_argument("register_model", "config", config, f"a {_families[family].config.__name__}")
    if _models.get(name, Model(name, family, config)) != Model(name, family, config):
        raise errors.bad_argument("register_model", "name", name, "a name that is not taken by another configuration")
    _models[name] = Model(name, family, config)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    pretrained: str | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Builds a model by name, with fresh or with saved parameters.

    Args:
        name: One of `list_models()`, such as `"vim_tiny"`.
        num_classes: The number of outputs; None keeps that of the named size.
        seed: Determines the initial parameters.
        dtype: What to compute in, `"float32"` (the default of all named sizes), `"bfloat16"` or `"float16"`. Parameters
            and logits are float32 in any case.
        pretrained: A folder written by `save_pretrained`, or a name on the Hugging Face hub: its parameters are loaded,
            and its configuration is used in place of the named size's.
        **overrides: Further fields of the family's configuration, such as `img_size=32` or `depth=4`.

    Returns:
        A Flax NNX module with a `config`.

    Raises:
        ValueError: The name or an option is unknown (the message has the near ones), or a value does not fit.

    >>> model = create_model("vim_nano", num_classes=10, depth=2)
    >>> model.config.depth, model.config.num_classes
    (2, 10)
    """
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    if dtype is not None:
        overrides["dtype"] = jnp.dtype(dtype).name
    entry = _lookup(name)
    if pretrained is None:
        return build(entry.family, override(entry.config, overrides, f"create_model({name!r})"), seed=seed)
    from ssmjax.checkpoints import hub  # here, because checkpoints stand above models and are not needed otherwise

    model = hub.load_pretrained(pretrained, seed=seed, **overrides)
    if family_of(model.config) != entry.family:
        raise ValueError(
            f"create_model: {pretrained!r} holds a {family_of(model.config)} model, and {name!r} is a {entry.family} "
            "model. Give a name of its own family, or use load_pretrained."
        )
    return model


def build(family: str, config: Any, *, seed: int = 0) -> nnx.Module:
    """Builds a model of a family from a configuration, with fresh parameters.

    Args:
        family: The family's name.
        config: One of its configurations.
        seed: Determines the parameters.

    >>> from ssmjax.models.vim import VimConfig
    >>> build("vim", VimConfig(img_size=8, patch_size=4, d_model=16, depth=1)).config.d_model
    16
    """
    make = get_family(family).build
    key = jax.random.key(seed)
    if isinstance(key, jax.core.Tracer):  # inside `nnx.eval_shape` or a caller's jit
        return make(config, rngs=nnx.Rngs(params=key))
    definition = nnx.graphdef(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(params=key))))

    def parameters(key):
        return nnx.state(make(config, rngs=nnx.Rngs(params=key)))

    # One program in place of about 50 small ones. It runs once, so most of the compiler's work would be wasted;
    # without it the wait is a third.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return nnx.merge(definition, jax.jit(parameters, compiler_options=options)(key))


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes, sorted.

    Args:
        pattern: A shell pattern, such as `"vim*"`.

    >>> list_models("vim_n*")
    ['vim_nano']
    """
    _load_families()
    return sorted(fnmatch.filter(_models, pattern))


def model_config(name: str) -> Any:
    """The configuration of a named size.

    >>> model_config("vim_tiny").d_model
    192
    """
    return _lookup(name).config


def get_family(name: str) -> Family:
    """A family by its name.

    Raises:
        ValueError: There is none of that name.
    """
    _load_families()
    if name not in _families:
        raise errors.unknown_name("model family", name, sorted(_families))
    return _families[name]


def families() -> tuple[Family, ...]:
    """Every family, sorted by name."""
    _load_families()
    return tuple(_families[name] for name in sorted(_families))


def family_of(config: Any) -> str:
    """The name of the family that a configuration belongs to.

    >>> family_of(model_config("vim_tiny"))
    'vim'
    """
    for family in families():
        if type(config) is family.config:
            return family.name
    raise errors.bad_argument("family_of", "config", config, "a configuration of a registered family")


def _lookup(name: str) -> Model:
    _load_families()
    if name not in _models:
        raise errors.unknown_name("model", name, sorted(_models))
    return _models[name]


@functools.cache
def _load_families() -> None:
    package = importlib.import_module("ssmjax.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"ssmjax.models.{module.name}")
