"""A table of what a model is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ssmjax.models.flops import count_flops
from ssmjax.models.registry import family_of, get_family

__all__ = ["count_parameters", "summary"]


def count_parameters(model: nnx.Module) -> int:
    """The number of parameters; works on an abstract model (`nnx.eval_shape`) too.

    >>> count_parameters(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    9
    """
    return sum(row[-1] for row in _rows(model))


def summary(
    model: nnx.Module,
    input_shape: Sequence[int] | Mapping[str, jax.ShapeDtypeStruct] | None = None,
    input_dtype: Any = jnp.float32,
) -> str:
    """A table of a model's parameters by module, with the output shape, totals and an estimate of the operations.

    Nothing is computed: the model is only traced. Stacked blocks show the number of blocks as the first axis of a
    shape.

    Args:
        model: Any Flax NNX module.
        input_shape: The shape of an input, batch included, for a model that is called with one array; or the arguments
            of a call by name, each a `jax.ShapeDtypeStruct`; or None, for one input as the model's family has it.
        input_dtype: The dtype of the one input.

    Returns:
        The table, lines of text.

    >>> print(summary(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), (4, 2)))
    Linear: (4, 2) float32 -> (4, 3) float32
    module  parameters               number
    ------  -------------------------------
    Linear  bias (3)  kernel (2, 3)       9
    ------  -------------------------------
    9 parameters (0.0 MB), 0.0 million floating-point operations for a forward pass of this shape
    """
    definition, state = nnx.split(model)
    if input_shape is None:
        input_shape = get_family(family_of(model.config)).inputs(model.config, 1)  # type: ignore[misc]
    named = isinstance(input_shape, Mapping)
    x = dict(input_shape) if named else jax.ShapeDtypeStruct(tuple(input_shape), input_dtype)

    def run(state, x):
        called = nnx.merge(definition, state)
        return called(**x) if named else called(x)

    out = jax.eval_shape(run, state, x)
    rows = _rows(model)
    total = sum(number for *_, number in rows)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    left = max(len("module"), *(len(path) for path, _, _ in rows))
    middle = max(len("parameters"), *(len(shapes) for _, shapes, _ in rows))
    right = max(len("number"), len(f"{total:,}"))
    rule = f"{'-' * left}  {'-' * (middle + 2 + right)}"
    return "\n".join(
        [
            f"{type(model).__name__}: {_array(x)} -> {_array(out)}",
            f"{'module':{left}}  {'parameters':{middle}}  {'number':>{right}}",
            rule,
            *(f"{path:{left}}  {shapes:{middle}}  {number:>{right},}" for path, shapes, number in rows),
            rule,
            f"{total:,} parameters ({size / 1e6:.1f} MB), {count_flops(run, state, x) / 1e6:,.1f} million "
            "floating-point operations for a forward pass of this shape",
        ]
    )


def _rows(model: nnx.Module) -> list[tuple[str, str, int]]:
    """One row a module that owns parameters: its path, their names and shapes, their number."""
    modules: dict[str, list[tuple[str, Any]]] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        *owner, name = map(str, path)
        modules.setdefault(".".join(owner) or type(model).__name__, []).append((name, leaf))
    return [
        (owner, "  ".join(f"{name} {_shape(leaf)}" for name, leaf in leaves), sum(leaf.size for _, leaf in leaves))
        for owner, leaves in modules.items()
    ]


def _shape(leaf: Any) -> str:
    return f"({', '.join(map(str, leaf.shape))})"


def _array(tree: Any) -> str:
    """The shapes and dtypes of an array, or of all that a tree holds."""
    return ", ".join(f"{_shape(x)} {x.dtype}" for x in jax.tree.leaves(tree))
