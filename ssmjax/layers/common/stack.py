"""Deep stacks of equal blocks: parameters stacked on a leading axis, and one `lax.scan` over them.

A block is traced and compiled once, whatever the depth. A loop would build and compile each block on its own.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ssmjax import errors

__all__ = ["apply_stack", "make_stack"]

Carry = TypeVar("Carry")


def make_stack(make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """Builds `depth` blocks as one module whose parameters have a leading axis of that length.

    Args:
        make_block: Builds one block; traced once.
        depth: The number of blocks.
        rngs: Split into one key a block, so that the initial values do not depend on how the stack is run.

    >>> from flax import nnx
    >>> make_stack(lambda rngs: nnx.Linear(2, 3, rngs=rngs), 4, nnx.Rngs(0)).kernel.shape
    (4, 2, 3)
    """
    keys = jax.random.split(rngs.params(), depth)
    return nnx.vmap(lambda key: make_block(nnx.Rngs(params=key)))(keys)


def apply_stack(
    stack: nnx.Module,
    step: Callable[[Carry, Any, Any], Carry],
    carry: Carry,
    per_block: Any = None,
    *,
    group: int = 1,
    unroll: bool = False,
    remat: bool = False,
) -> Carry:
    """Runs a carry through the blocks of a stack.

    Args:
        stack: From `make_stack`.
        step: `step(carry, block, values) -> carry`. With `group > 1`, it gets lists of `group` blocks and of their
            values. What it changes of a block's variables that are no parameters, such as the statistics of a batch
            norm, is written back to the stack.
        carry: What the first block gets; a tree of arrays whose shapes and dtypes no block changes.
        per_block: A tree of arrays with a leading axis of the stack's depth: what a block gets beside the carry, such
            as a key.
        group: How many consecutive blocks one step takes; divides the depth.
        unroll: A Python loop in place of the scan: a faster run where the compiler gains from seeing all blocks, at a
            compile time that grows with the depth.
        remat: Whether the backward pass recomputes a block's inside from its input, which saves memory and costs a
            forward.

    Returns:
        The carry after the last block.
    """
    errors.require_flags("apply_stack", unroll=unroll, remat=remat)
    definition, parameters, rest = nnx.split(stack, nnx.Param, ...)
    written = False

    def run(carry, slices):
        nonlocal written
        each = [jax.tree.map(lambda x, i=i: x[i], slices) for i in range(group)]
        before = jax.tree.leaves([own_rest for _, own_rest, _ in each])  # here, as a merged block may share them
        blocks = [nnx.merge(definition, own_parameters, own_rest) for own_parameters, own_rest, _ in each]
        values = [own_values for *_, own_values in each]
        carry = step(carry, blocks, values) if group > 1 else step(carry, blocks[0], values[0])
        changed = [nnx.split(block, nnx.Param, ...)[2] for block in blocks]
        written |= any(new is not old for new, old in zip(jax.tree.leaves(changed), before, strict=True))
        return carry, jax.tree.map(lambda *x: jnp.stack(x), *changed)

    if remat:
        run = jax.checkpoint(
            run, prevent_cse=unroll
        )  # inside a scan nothing can be merged back, so no barrier is needed
    slices = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (parameters, rest, per_block))
    if not unroll:
        carry, changed = jax.lax.scan(run, carry, slices)
    else:
        pieces = []
        for i in range(len(jax.tree.leaves(slices)[0])):
            carry, piece = run(carry, jax.tree.map(lambda x, i=i: x[i], slices))
            pieces.append(piece)
        changed = jax.tree.map(lambda *x: jnp.stack(x), *pieces)
    if written:  # not otherwise: a function that only reads a model may be jitted with the model in its closure
        nnx.update(stack, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), changed))
    return carry
