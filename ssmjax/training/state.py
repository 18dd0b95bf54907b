"""What a training step reads and writes: flat dictionaries of arrays, and how a model is taken apart and put together.

Flat dictionaries, because jit flattens its arguments in C++ if they are dictionaries, and in Python if they are Flax's
own containers, at every step.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ssmjax.errors import bad_argument
from ssmjax.shapes import Array
from ssmjax.training.parameter_info import ParameterInfo, parameter_info

__all__ = ["Arrays", "Layout", "LossScale", "TrainState", "commit", "split_model", "split_trainable"]

Arrays = dict[str, Array]
"""Arrays by the path of their variable, such as `{"blocks.mixer.A_log": ...}`."""


class LossScale(NamedTuple):
    """What a float16 loss is multiplied with, so that small gradients are not rounded to zero.

    Attributes:
        scale: () float32, a power of two.
        good_steps: () int32, how many steps in a row have been finite with it.
    """

    scale: jax.Array
    good_steps: jax.Array


class TrainState(NamedTuple):
    """Everything that changes from step to step.

    Attributes:
        step: () int32, the number of steps done.
        key: The key of the run; the step's own is `fold_in(key, step)`.
        params: The model's `nnx.Param` variables, those that are trained.
        rest: Its other variables, such as batch statistics; not the parameters that are not trained.
        opt_state: The optimizer's state.
        ema: The moving average of `params`, None without one.
        bad_steps: () int32, how many steps were skipped in all.
        bad_streak: () int32, how many were skipped since the last good one.
        loss_scale: The scale of the loss, None without one.
    """

    step: jax.Array
    key: jax.Array
    params: Arrays
    rest: Arrays
    opt_state: Any
    ema: Arrays | None
    bad_steps: jax.Array
    bad_streak: jax.Array
    loss_scale: LossScale | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model without its arrays; hashable, so that it can be a static argument.

    Attributes:
        graphdef: The structure of the modules.
        params: The structure of the `nnx.Param` variables that are trained.
        frozen: That of those that are not.
        rest: The structure of all other variables.
        param_names: The paths of the parameters, in the order of `params`.
        frozen_names: The names of the parameters that are not trained.
        rest_names: The names of the other variables.
        info: What each of the parameters in `param_names` is.
    """

    graphdef: nnx.GraphDef
    params: Any
    frozen: Any
    rest: Any
    param_names: tuple[str, ...]
    frozen_names: tuple[str, ...]
    rest_names: tuple[str, ...]
    info: tuple[ParameterInfo, ...]

    @property
    def parameter_info(self) -> dict[str, ParameterInfo]:
        """What the parameters are, by path."""
        return dict(zip(self.param_names, self.info, strict=True))

    def merge(self, params: Arrays, rest: Arrays, frozen: Arrays | None = None) -> Any:
        """Puts the model together again.

        Args:
            params: The parameters as `split_model` returned them, of any values.
            rest: The other variables, likewise.
            frozen: The parameters that are not trained, if there are any.

        Returns:
            A new module that holds these arrays.
        """
        parts = (
            (self.params, params, self.param_names),
            (self.frozen, frozen or {}, self.frozen_names),
            (self.rest, rest, self.rest_names),
        )
        states = [jax.tree.unflatten(structure, [own[name] for name in names]) for structure, own, names in parts]
        return nnx.merge(self.graphdef, *states)

    def rest_of(self, model: Any) -> Arrays:
        """Returns the variables of a merged model that are not parameters, as a call has left them.

        Args:
            model: What `merge` returned.

        Raises:
            ValueError: The call has made or removed variables.
        """
        rest = _by_path(nnx.split(model, nnx.Param, ...)[2])
        if changed := sorted(rest.keys() ^ set(self.rest_names)):
            raise ValueError(
                f"fit: the call of the model has made or removed the variables {changed}. A training step needs "
                "the same ones before and after; make them in `__init__`, and return intermediate values as outputs."
            )
        return rest


def split_model(model: Any) -> tuple[Layout, Arrays, Arrays]:
    """Takes a model apart, without copying.

    Args:
        model: An NNX module.

    Returns:
        Its layout, its parameters and its other variables, by path.

    >>> layout, params, rest = split_model(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> sorted(params), rest
    (['bias', 'kernel'], {})
    """
    return split_trainable(model, None)[:3]


def split_trainable(model: Any, trainable: Any) -> tuple[Layout, Arrays, Arrays, Arrays]:
    """Takes a model apart of which some parameters are not trained, without copying.

    Args:
        model: An NNX module.
        trainable: Which of its `nnx.Param` variables are trained, a filter of NNX, such as
            `nnx.PathContains("projector")` or a function of a path and a variable; None trains all.

    Returns:
        Its layout; and by path its parameters that are trained, its other variables, and the parameters that are not
        trained.

    Raises:
        ValueError: The filter matches no parameter.

    >>> layout, params, rest, frozen = split_trainable(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.PathContains("bias"))
    >>> list(params), rest, list(frozen)
    (['bias'], {}, ['kernel'])
    """
    trained = nnx.Param if trainable is None else nnx.All(nnx.Param, trainable)
    graphdef, *states = nnx.split(model, trained, nnx.Param, ...)
    params, frozen, rest = map(_by_path, states)
    if trainable is not None and not params:
        raise bad_argument("fit", "trainable", trainable, f"a filter that matches one of {', '.join(frozen)}")
    known = parameter_info(states[0])
    info = tuple(known.get(name, ParameterInfo()) for name in params)
    structures = map(jax.tree.structure, states)
    return Layout(graphdef, *structures, tuple(params), tuple(frozen), tuple(rest), info), params, rest, frozen


def commit(tree: Any) -> Any:
    """Copies arrays to where they are, as arrays committed to their devices and without weak types.

    Restored arrays are like that, fresh ones are not, and a compiled step must not tell the two apart. The copies may
    be donated; the originals stay as they are.

    Args:
        tree: Any pytree of arrays.
    """

    def one(x: jax.Array) -> jax.Array:
        x = jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else x
        return jax.device_put(x, x.sharding, may_alias=False)

    return jax.tree.map(lambda x: one(x if isinstance(x, jax.Array) else jnp.asarray(x)), tree)


def _by_path(state: Any) -> Arrays:
    """The arrays of an `nnx.State` by path, without its last part, `value`, which is inside of the variable."""
    named = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): x for path, x in named}
