"""What a training step reads and writes: flat dictionaries of arrays, and how a model is taken apart and put together.

Flat dictionaries, because jit flattens its arguments in C++ if they are dictionaries, and in Python if they are Flax's
own containers, at every step.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ssmjax.shapes import Array

__all__ = ["Arrays", "Layout", "TrainState", "commit", "split_model"]

Arrays = dict[str, Array]
"""Arrays by the path of their variable, such as `{"blocks.mixer.A_log": ...}`."""


class TrainState(NamedTuple):
    """Everything that changes from step to step.

    Attributes:
        step: () int32, the number of steps done.
        key: The key of the run; the step's own is `fold_in(key, step)`.
        params: The model's `nnx.Param` variables.
        rest: Its other variables, such as batch statistics.
        opt_state: The optimizer's state.
        ema: The moving average of `params`, None without one.
        bad_steps: () int32, how many steps were skipped in all.
        bad_streak: () int32, how many were skipped since the last good one.
    """

    step: jax.Array
    key: jax.Array
    params: Arrays
    rest: Arrays
    opt_state: Any
    ema: Arrays | None
    bad_steps: jax.Array
    bad_streak: jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model without its arrays; hashable, so that it can be a static argument.

    Attributes:
        graphdef: The structure of the modules.
        params: The structure of the `nnx.Param` variables.
        rest: The structure of all other variables.
        param_names: The paths of the parameters, in the order of `params`.
        rest_names: The same of the other variables.
    """

    graphdef: nnx.GraphDef
    params: Any
    rest: Any
    param_names: tuple[str, ...]
    rest_names: tuple[str, ...]

    def merge(self, params: Arrays, rest: Arrays) -> Any:
        """Puts the model together again.

        Args:
            params: As `split_model` returned them, of any values.
            rest: The same for the other variables.

        Returns:
            A new module that holds these arrays.
        """
        first = jax.tree.unflatten(self.params, [params[name] for name in self.param_names])
        return nnx.merge(self.graphdef, first, jax.tree.unflatten(self.rest, [rest[name] for name in self.rest_names]))

    def rest_of(self, model: Any) -> Arrays:
        """Returns the variables of a merged model that are not parameters, as a call has left them.

        Args:
            model: What `merge` returned.

        Raises:
            ValueError: The call has made or removed variables.
        """
        rest = split_model(model)[2]
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
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, rest = map(_by_path, states)
    structures = map(jax.tree.structure, states)
    return Layout(graphdef, *structures, tuple(params), tuple(rest)), params, rest


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
