"""What a family of models tells the library about itself: how it is built, fed, adapted and read."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors

__all__ = ["Family", "HFLayout", "Model", "Part"]

Inputs = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model that has a folder of its own, with `config.json` and weights.

    Attributes:
        prefix: What is put before the names of its arrays.
        side: Where a folder holds more than the part, the beginning of the names that are of it.

    >>> Part("llm.").prefix
    'llm.'
    """

    prefix: str
    side: str = ""


@dataclasses.dataclass(frozen=True)
class HFLayout:
    """How a family is stored in a folder of the Hugging Face form: `config.json` and safetensors.

    Attributes:
        types: The values of `model_type` in a `config.json` that this layout reads.
        read: `read(config_json)`, our configuration for the content of a `config.json`, a dictionary. It raises
            `ValueError` for a value that the family does not have, and never guesses.
        write: `write(config)`, the content of a `config.json` for one of our configurations, `model_type` and
            `architectures` included.
        table: `table(config)`, the `ssmjax.checkpoints.mapping.KeyTable` between the names in the files and ours. It is
            for one configuration, so that it can tell which layers are of which kind and what is tied.
        architectures: The values of `architectures` that are this family's, where several families share a
            `model_type`; empty for any.
        recognizes: `recognizes(config_json)`, in place of `types` and `architectures` where a program writes neither.
        parts: The parts that have folders of their own, by the folder's name below the model's, or by the argument of
            `load_pretrained` that gives a folder elsewhere. `read` finds the content of a part's `config.json` under
            `NAME_cfg`.
        check: `check(config_json, names)`, with the names of the arrays that were found: raises `ValueError` if a part
            of the model is not there at all.

    >>> layout = HFLayout(("llama",), read=dict, write=dict, table=dict, architectures=("LlamaForCausalLM",))
    >>> layout.accepts({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    True
    >>> layout.accepts({"model_type": "llama", "architectures": ["LlamaForTokenClassification"]})
    False
    """

    types: Sequence[str]
    read: Callable[[Mapping[str, Any]], Any]
    write: Callable[[Any], dict[str, Any]]
    table: Callable[[Any], Any]
    architectures: Sequence[str] = ()
    recognizes: Callable[[Mapping[str, Any]], bool] | None = None
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    check: Callable[[Mapping[str, Any], Collection[str]], None] | None = None

    def accepts(self, description: Mapping[str, Any]) -> bool:
        """Whether the content of a `config.json` is of this layout."""
        if self.recognizes is not None:
            return bool(self.recognizes(description))
        if description.get("model_type") not in self.types:
            return False
        named = description.get("architectures") or []
        return not (named and self.architectures) or any(name in self.architectures for name in named)


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model, and what the library needs to know to create, summarize, test, save and load all of its sizes.

    Attributes:
        name: Its name, which a saved model carries.
        config: The configuration class, a frozen dataclass (`ssmjax.models.config`).
        build: `build(config, rngs=...)`, usually the module class.
        input_shape: `input_shape(config, batch)`, the shape of the one input of a model that has one; in place of
            `inputs`. With `inputs` it is the shape of the first.
        tiny: Configuration fields that make any of its models small enough to run in a test. A dictionary is a change
            of a nested configuration.
        input_dtype: `input_dtype(config)`, the dtype of that input: int32 for a model of tokens.
        inputs: `inputs(config, batch)`, the arguments of a call by name, each a `jax.ShapeDtypeStruct`: what summaries
            and registry-wide tests feed.
        adapt: `adapt(arrays, saved, config, fresh)`, the saved arrays for a changed configuration, by name:
            a new head, other position embeddings. `fresh()` gives the arrays of a new model of the changed
            configuration. By default, arrays whose names begin with `head.` are new where `num_classes` changes.
        adapts: The configuration fields that `adapt` knows how to change, for the message where another one does not
            fit.
        hf: The forms of the Hugging Face hub that it is read from; the first is written. One `HFLayout` or several;
            or where they are, `"package.module:NAME"`, for a family that its converter imports.
        package: What a user imports to have the family, which a saved model carries. By default, the first part of the
            configuration's module.

    >>> from ssmjax.models.registry import get_family
    >>> vim = get_family("vim")
    >>> vim.inputs(vim.config(img_size=32), batch=2)
    {'images': ShapeDtypeStruct(shape=(2, 32, 32, 3), dtype=float32)}
    """

    name: str
    config: type
    build: Callable[..., nnx.Module]
    input_shape: Callable[[Any, int], tuple[int, ...]] | None = None
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    input_dtype: Callable[[Any], DTypeLike] | None = None
    inputs: Callable[[Any, int], Inputs] | None = None
    adapt: Callable[..., dict[str, Any]] | None = None
    adapts: Sequence[str] = ("num_classes",)
    hf: HFLayout | Sequence[HFLayout] | str | None = None
    package: str = ""

    def __post_init__(self) -> None:
        if self.inputs is None and self.input_shape is None:
            raise errors.bad_argument("Family", "inputs", None, "a function (config, batch) -> specs by name")
        if self.inputs is None:
            object.__setattr__(self, "inputs", _single_input(self.build, self.input_shape, self.input_dtype))
        else:
            first = lambda config, batch: next(iter(self.inputs(config, batch).values()))  # noqa: E731  # type: ignore[misc]
            object.__setattr__(self, "input_shape", lambda config, batch: first(config, batch).shape)
            object.__setattr__(self, "input_dtype", lambda config: first(config, 1).dtype)
        if self.input_dtype is None:
            object.__setattr__(self, "input_dtype", lambda config: jnp.float32)
        if not self.package:
            object.__setattr__(self, "package", self.config.__module__.partition(".")[0])


@dataclasses.dataclass(frozen=True)
class Model:
    """A named size: the name, its family's name, and the configuration."""

    name: str
    family: str
    config: Any


def _single_input(build, shape, dtype):
    """The `inputs` of a family whose models take one array, under the name that the call gives it."""
    call = build.__call__ if inspect.isclass(build) else None
    names = [name for name in inspect.signature(call).parameters if name != "self"] if call else []
    name = names[0] if names else "inputs"

    def inputs(config, batch):
        kind = jnp.float32 if dtype is None else dtype(config)
        return {name: jax.ShapeDtypeStruct(shape(config, batch), kind)}

    return inputs
