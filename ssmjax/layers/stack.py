"""Deep stacks of equal blocks: parameters stacked on a leading axis, and one `lax.scan` over them.

A block is traced and compiled once, whatever the depth. A loop would build and compile each block on its own.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

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
            values.
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
    definition, parameters = nnx.split(stack)

    def run(carry, slices):
        blocks = [nnx.merge(definition, jax.tree.map(lambda x, i=i: x[i], slices[0])) for i in range(group)]
        values = [jax.tree.map(lambda x, i=i: x[i], slices[1]) for i in range(group)]
        return step(carry, blocks, values) if group > 1 else step(carry, blocks[0], values[0]), None

    if remat:
        run = jax.checkpoint(
            run, prevent_cse=unroll
        )  # inside a scan nothing can be merged back, so no barrier is needed
    slices = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (parameters, per_block))
    if not unroll:
        return jax.lax.scan(run, carry, slices)[0]
    for i in range(len(jax.tree.leaves(slices)[0])):
        carry, _ = run(carry, jax.tree.map(lambda x, i=i: x[i], slices))
    return carry
