"""Models by name.

A family is one module under `ssmjax.models`, found and imported on first use; on import it registers its family (a
configuration class, a module class and hooks, see `Family`) and its named sizes. A module of another package registers
in the same way, by `register_family` and `register_model`; its names are known once it is imported. An installed
package may name that module as an entry point, and then it is imported where a name is not known otherwise:

    [project.entry-points."ssmjax.families"]
    my_package = "my_package.models"
"""

import fnmatch
import functools
import importlib
import importlib.metadata
import logging
import pkgutil
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.models.config import override
from ssmjax.models.family import Family, HFLayout, Model

__all__ = [
    "Family",
    "HFLayout",
    "Model",
    "build",
    "create_model",
    "families",
    "family_of",
    "get_family",
    "hf_layouts",
    "list_models",
    "model_config",
    "register_family",
    "register_model",
]

logger = logging.getLogger(__name__)

ENTRY_POINTS = "ssmjax.families"

Found = TypeVar("Found")

_families: dict[str, Family] = {}
_models: dict[str, Model] = {}


def register_family(family: Family) -> None:
    """Adds a family, of this package or of any other.

    Args:
        family: What the library needs to know about it.

    Raises:
        ValueError: The name or the configuration class is taken by another family.

    >>> register_family(get_family("vim"))  # once more, as when a notebook's cell is run again
    """
    for other in _families.values():
        # A module that is executed twice (a notebook's cell) registers its family anew.
        same = (family.name, _full_name(family.config)) == (other.name, _full_name(other.config))
        if not same and (family.name == other.name or family.config is other.config):
            wanted = f"another name and configuration class than those of {other.name!r}, which {other.package} has"
            raise errors.bad_argument("register_family", "family", family.name, wanted)
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
    **overrides: Any,
) -> nnx.Module:
    """Builds a model by name, with fresh parameters; `ssmjax.create_model` loads saved ones, too.

    Args:
        name: One of `list_models()`, such as `"vim_tiny"`.
        num_classes: The number of outputs; None keeps that of the named size.
        seed: Determines the initial parameters.
        dtype: What to compute in, `"float32"` (the default of all named sizes), `"bfloat16"` or `"float16"`. Parameters
            and logits are float32 in any case.
        **overrides: Further fields of the family's configuration, such as `img_size=32` or `depth=4`. A dictionary is a
            change of a nested configuration.

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
    return build(entry.family, override(entry.config, overrides, f"create_model({name!r})"), seed=seed)


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
    """The names that `create_model` takes, sorted: those of this package, and those of other packages once imported.

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

    Args:
        name: Such as `"vim"`.

    Raises:
        ValueError: There is none of that name.

    >>> get_family("vim").adapts
    ('num_classes', 'img_size')
    """
    return _find("model family", name, _families)


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


def hf_layouts(family: Family) -> tuple[HFLayout, ...]:
    """The forms of the Hugging Face hub that a family is read from; the first is the one that is written.

    >>> hf_layouts(get_family("vim"))
    ()
    """
    layouts = family.hf
    if isinstance(layouts, str):  # of a converter, which stands above the models: imported when it is needed
        module, _, attribute = layouts.partition(":")
        layouts = getattr(importlib.import_module(module), attribute)
    if layouts is None:
        return ()
    return (layouts,) if isinstance(layouts, HFLayout) else tuple(layouts)


def load_plugins() -> bool:
    """Imports the modules that installed packages name as entry points; False if there was nothing left to import.

    >>> load_plugins() in (True, False)
    True
    """
    loaded = False
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if entry.value not in _plugins:
            _plugins.add(entry.value)
            logger.info("Importing %s, the models of the package %s.", entry.value, entry.name)
            entry.load()
            loaded = True
    return loaded


_plugins: set[str] = set()


def _lookup(name: str) -> Model:
    return _find("model", name, _models)


def _find(kind: str, name: str, entries: Mapping[str, Found]) -> Found:
    _load_families()
    if name not in entries and isinstance(name, str):
        load_plugins()
    if name not in entries:
        raise errors.unknown_name(kind, name, sorted(entries))
    return entries[name]


def _full_name(thing: type) -> tuple[str, str]:
    return thing.__module__, thing.__qualname__


@functools.cache
def _load_families() -> None:
    package = importlib.import_module("ssmjax.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"ssmjax.models.{module.name}")
