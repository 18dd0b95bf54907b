"""The steps of generation in the form that a CPU runs fastest: each block's arrays on their own, matrices by outputs.

A step reads every parameter once, for one product with each. Out of a stack a block's parameters would be copied first,
which takes three times as long as to read them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ssmjax.layers.common.norms import add_norm
from ssmjax.layers.common.stack import in_memory_of_cpu, stack_rows
from ssmjax.shapes import Array, Float, Int

__all__ = ["Decoder", "places", "unstacked"]

_MOST_TRANSPOSED = 4 << 30  # bytes: beyond it a second copy of the layers may not find room


def places(pattern: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The kind of each block, and which one of its kind it is.

    >>> list(places(("a", "b", "a")))
    [('a', 0), ('b', 0), ('a', 1)]
    """
    seen: dict[str, int] = {}
    for kind in pattern:
        yield kind, seen.get(kind, 0)
        seen[kind] = seen.get(kind, 0) + 1


def unstacked(stacks: Mapping[str, nnx.Module]) -> dict[str, list[Any]] | None:
    """The arrays of each block of some stacks, as views of theirs; None where the arrays are not in a CPU's memory."""
    states = {kind: nnx.split(stack)[1] for kind, stack in stacks.items()}
    return (
        {kind: stack_rows(state) for kind, state in states.items()}
        if all(map(in_memory_of_cpu, jax.tree.leaves(states)))
        else None
    )


class Decoder:
    """A language model as a loop over tokens runs it, made inside the compiled program and before the loop.

    With `transposed`, each matrix of a linear map is first laid out as (outputs inputs). In that order a CPU reads it
    once for the product with several rows; in the usual one it packs all of it anew for every product. This takes a
    second copy of the layers' matrices and the time of about five steps.

    Args:
        model: A `LanguageModel`.
        rows: The arrays of each block, from `unstacked`, or None to cut them out of the stacks.
        transposed: Whether to lay the matrices out anew, if they are not more than 4 GB.
    """

    def __init__(self, model: Any, rows: dict[str, list[Any]] | None, transposed: bool):
        parts = {kind: nnx.split(getattr(model, kind)) for kind in dict.fromkeys(model.config.pattern)}
        on_cpu = rows is not None
        rows = {kind: stack_rows(state) for kind, (_, state) in parts.items()} if rows is None else rows
        self.model, self.places = model, list(places(model.config.pattern))
        self.blocks = [nnx.merge(parts[kind][0], rows[kind][i]) for kind, i in self.places]
        self.head = model.embedding[...] if model.head is None and on_cpu else None
        if transposed and sum(x.nbytes for x in jax.tree.leaves(rows)) <= _MOST_TRANSPOSED:
            for block in self.blocks:
                _transpose(block)
            self.head = model.head_kernel.T if self.head is None else self.head

    def adopt(self, cache: Mapping[str, Any]) -> list[Any]:
        """The cache of `LanguageModel.prefill` in this form: a state for each block."""
        return [jax.tree.map(lambda x, i=i: x[i], cache[kind]) for kind, i in self.places]

    def step(self, tokens: Int[Array, "b"], states: list[Any]) -> tuple[Float[jax.Array, "b v"], list[Any]]:
        """Reads one token a row: the logits after it, and the states."""
        model, after = self.model, []
        hidden = model.embed(tokens)
        residual = model.no_residual(hidden)
        for block, state in zip(self.blocks, states, strict=True):
            hidden, residual, state = block.step(hidden, residual, state)
            after.append(state)
        x = add_norm(model.norm_f, hidden, residual)[0]
        if self.head is None:
            return model.logits(x), after
        return _by_outputs(self.head.astype(x.dtype), x, jnp.float32), after


def _by_outputs(matrix: jax.Array, x: jax.Array, dtype) -> jax.Array:
    """`x @ matrix.T`, asked for as (outputs ...): a CPU then reads the matrix in the order in which it lies."""
    product = jax.lax.dot_general(matrix, x, (((1,), (x.ndim - 1,)), ((), ())), preferred_element_type=dtype)
    product = jax.lax.optimization_barrier(product)  # else XLA turns the product around, and packs the matrix again
    return jnp.moveaxis(product, 0, -1)


class _LinearByOutputs(nnx.Linear):
    """An `nnx.Linear` whose matrix lies as (outputs inputs)."""

    def __init__(self, linear: nnx.Linear):  # in place of nnx.Linear's own, which would draw a matrix
        self.matrix, self.bias = nnx.Param(linear.kernel[...].T), linear.bias
        self.in_features, self.out_features, self.dtype = linear.in_features, linear.out_features, linear.dtype

    @property
    def kernel(self) -> jax.Array:  # type: ignore[override]
        """The matrix as the linear map has it."""
        return self.matrix[...].T

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        dtype = self.dtype or jnp.result_type(x, self.matrix[...])
        y = _by_outputs(self.matrix[...].astype(dtype), x.astype(dtype), dtype)
        return y if self.bias is None else y + self.bias[...].astype(dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _transpose(block: nnx.Module) -> None:
    for _, module in list(nnx.iter_graph(block)):
        if isinstance(module, nnx.Module):
            for name, child in list(vars(module).items()):
                if isinstance(child, nnx.Linear):
                    setattr(module, name, _LinearByOutputs(child))
