"""Deep stacks of equal blocks: parameters stacked on a leading axis, and one `lax.scan` over them.

A block is traced and compiled once, whatever the depth. A loop would build and compile each block on its own. Blocks of
several kinds have one stack for each kind, and a pattern says in which order they follow one another.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.ops.selective_scan.call import STATES

__all__ = ["apply_stack", "in_pattern_order", "make_stack", "stack_rows", "unstack"]

_SCANNED = jax.checkpoint_policies.save_only_these_names(STATES)


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


def unstack(stack: nnx.Module) -> list[nnx.Module]:
    """The blocks of a stack one by one, each with parameters of its own. `apply_stack` runs such a list, too.

    A program that reads every parameter once for little work, such as a decoding step, would copy each block's
    parameters out of a stack before it reads them. On a CPU the blocks share the stack's memory.

    Args:
        stack: From `make_stack`.

    >>> from flax import nnx
    >>> [block.kernel.shape for block in unstack(make_stack(lambda rngs: nnx.Linear(2, 3, rngs=rngs), 2, nnx.Rngs(0)))]
    [(2, 3), (2, 3)]
    """
    definition, rows = nnx.split(stack)[0], stack_rows(nnx.split(stack)[1])
    return [nnx.merge(definition, row) for row in rows]


def stack_rows(tree: Any) -> list[Any]:
    """The rows of arrays with one leading axis, as one tree for each; on a CPU they are views, which cost nothing.

    >>> [row["x"].tolist() for row in stack_rows({"x": jnp.array([[1, 2], [3, 4]])})]
    [[1, 2], [3, 4]]
    """
    leaves, structure = jax.tree.flatten(tree)
    return [structure.unflatten(row) for row in zip(*map(_rows_of, leaves), strict=True)]


def in_memory_of_cpu(x: Any) -> bool:
    """Whether an array has values, and they lie in this machine's own memory as numpy could read them."""
    concrete = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    if not concrete or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return False
    return [device.platform for device in x.devices()] == ["cpu"]


def _rows_of(x: Any) -> list[jax.Array]:
    if not in_memory_of_cpu(x):
        return [x[i] for i in range(len(x))]
    (device,) = x.devices()
    return [jax.device_put(row, device) for row in np.asarray(x)]  # neither copies where a row is aligned as jax wants


def apply_stack(
    stack: nnx.Module | Mapping[str, nnx.Module] | list[nnx.Module],
    step: Callable[[Any, Any, Any], Any],
    carry: Any,
    per_block: Any = None,
    *,
    pattern: Sequence[str] | None = None,
    start: int = 0,
    stop: int | None = None,
    group: int = 1,
    outputs: bool = False,
    unroll: bool = False,
    remat: bool = False,
) -> Any:
    """Runs a carry through the blocks of a stack, or through some of them.

    Args:
        stack: From `make_stack`, or a list of blocks (`unstack`), over which there is a Python loop. With a `pattern`,
            one stack for each kind of block, by the kind's name.
        step: `step(carry, block, values) -> carry`. With `group > 1`, it gets lists of `group` blocks and of their
            values. What it changes of a block's variables that are no parameters, such as the statistics of a batch
            norm, is written back to the stack.
        carry: What the first block gets; a tree of arrays whose shapes and dtypes no block changes.
        per_block: A tree of arrays with a leading axis of the number of blocks that are run: what a block gets beside
            the carry, such as a key, a cache or the hidden state of an earlier block. With a `pattern`, one tree for
            each kind of block, by its name; a kind that is left out gets None. With a list of blocks it may be a list,
            and so are the outputs then.
        pattern: The kind of each block, from the first to the last, such as `("mamba", "mamba", "attention") * 4`.
            Where it repeats, one scan runs over the repetitions; else there is a scan for each run of equal blocks.
        start: The first block to run.
        stop: The block before which to stop; None runs to the last.
        group: How many consecutive blocks one step takes; divides the number of blocks. It needs a single kind.
        outputs: Whether `step` returns `(carry, output)`; the outputs of all blocks are then returned, too.
        unroll: A Python loop in place of the scan: a faster run where the compiler gains from seeing all blocks, at a
            compile time that grows with the depth.
        remat: Whether the backward pass recomputes a block's inside from its input, which saves memory and costs a
            forward; without its selective scans, whose states are kept.

    Returns:
        The carry after the last block. With `outputs`, the carry and the outputs, on a new leading axis in the order of
        the blocks (one for each group); with a `pattern`, a dictionary of such trees by kind.

    Raises:
        ValueError: The pattern does not fit the stacks, the group does not divide the blocks, or `per_block` has
            another leading axis.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> stack = make_stack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4, nnx.Rngs(0))
    >>> def step(x, block, skip):
    ...     x = block(x if skip is None else x + skip)
    ...     return x, x
    >>> x, hidden = apply_stack(stack, step, jnp.ones((2, 3)), stop=2, outputs=True)
    >>> x, more = apply_stack(stack, step, x, hidden[::-1], start=2, outputs=True)
    >>> more.shape
    (2, 2, 3)
    """
    errors.require_flags("apply_stack", outputs=outputs, unroll=unroll, remat=remat)
    if isinstance(stack, list):
        return _apply_list(stack[slice(start, stop)], step, carry, per_block, outputs, remat)
    kinds = {kind: _Kind(*nnx.split(module, nnx.Param, ...)) for kind, module in _by_kind(stack, pattern).items()}
    whole = ("",) * kinds[""].depth if pattern is None else tuple(pattern)
    _check_pattern(whole, kinds, group)
    first, last, _ = slice(start, stop).indices(len(whole))
    chosen = whole[first:last]
    values = {"": per_block} if pattern is None else {kind: (per_block or {}).get(kind) for kind in kinds}
    _check_values(values, chosen, group)
    done = {kind: whole[:first].count(kind) for kind in kinds}  # how many blocks of a kind come before
    taken = dict.fromkeys(kinds, 0)
    runner = _Runner(kinds, step, group, outputs, unroll, remat)
    changed: dict[str, list[Any]] = {kind: [] for kind in kinds}
    collected: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for unit, repeats in _segments(chosen, group if pattern is None else None):
        pieces = {}
        for kind in dict.fromkeys(unit):
            count = repeats * unit.count(kind)
            own = _rows((kinds[kind].parameters, kinds[kind].rest), done[kind] + taken[kind], count)
            pieces[kind] = (*own, _rows(values[kind], taken[kind], count))
            taken[kind] += count
        carry, new, out = runner.run(carry, unit, repeats, pieces)
        for kind in new:
            changed[kind].append(new[kind])
            collected[kind].append(out[kind])
    if runner.written:  # not otherwise: a function that only reads a model may be jitted with the model in its closure
        for kind, module in _by_kind(stack, pattern).items():
            if changed[kind]:
                _write(module, kinds[kind].rest, _joined(changed[kind]), done[kind])
    if not outputs:
        return carry
    results = {kind: _joined(out) for kind, out in collected.items() if out}
    return carry, results[""] if pattern is None else results


def _apply_list(blocks, step, carry, per_block, outputs, remat):
    """A loop over blocks that are not stacked."""
    own = isinstance(per_block, list)
    if not own:
        _check_values({"": per_block}, ("",) * len(blocks), 1)
    collected = []
    for i, block in enumerate(blocks):
        values = per_block[i] if own else jax.tree.map(lambda x, i=i: x[i], per_block)
        definition, state = nnx.split(block)

        def run(state, carry, values, definition=definition):
            return step(carry, nnx.merge(definition, state), values)

        result = (jax.checkpoint(run) if remat else run)(state, carry, values)
        carry, output = result if outputs else (result, None)
        collected.append(output)
    if not outputs:
        return carry
    return carry, collected if own else jax.tree.map(lambda *x: jnp.stack(x), *collected)


def in_pattern_order(outputs: Mapping[str, Any], pattern: Sequence[str]) -> Any:
    """Puts outputs of several kinds of blocks in the order of the blocks, where all kinds have alike outputs.

    Args:
        outputs: From `apply_stack` with a pattern: by kind, trees with a leading axis of the kind's blocks.
        pattern: The kinds of the blocks that were run, in order.

    Returns:
        One such tree for all blocks.

    >>> import jax.numpy as jnp
    >>> in_pattern_order({"a": jnp.array([1, 3]), "b": jnp.array([2])}, "aba").tolist()
    [1, 2, 3]
    """
    seen = dict.fromkeys(outputs, 0)
    ordered = []
    for kind in pattern:
        ordered.append(jax.tree.map(lambda x, i=seen[kind]: x[i], outputs[kind]))
        seen[kind] += 1
    return jax.tree.map(lambda *x: jnp.stack(x), *ordered)


class _Kind(NamedTuple):
    """A stack of one kind of block, taken apart."""

    definition: Any
    parameters: Any
    rest: Any

    @property
    def depth(self) -> int:
        return len(jax.tree.leaves((self.parameters, self.rest))[0])


class _Runner:
    """Runs one scan after another, and remembers whether a step has changed a variable."""

    def __init__(self, kinds: Mapping[str, _Kind], step, group: int, outputs: bool, unroll: bool, remat: bool):
        self.kinds, self.step, self.group, self.outputs = kinds, step, group, outputs
        self.unroll, self.remat = unroll, remat
        self.written = False

    def run(self, carry: Any, unit: Sequence[str], repeats: int, pieces: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Runs `unit` so many times; returns the carry, the variables and the outputs by kind."""

        def run(carry, slices):
            carry, changed, outputs = self._unit(carry, unit, slices)
            return carry, (changed, outputs)

        if self.remat:  # inside a scan nothing can be merged back, so no barrier is needed
            run = jax.checkpoint(run, prevent_cse=self.unroll, policy=_SCANNED)
        slices = {}
        for kind, piece in pieces.items():  # reshaped only if it must be: XLA copies whole stacks for it on a CPU
            count = unit.count(kind)
            cut = [x if count == 1 else x.reshape(repeats, count, *x.shape[1:]) for x in jax.tree.leaves(piece)]
            slices[kind] = jax.tree.unflatten(jax.tree.structure(piece), cut)
        if not self.unroll or repeats == 0:
            carry, results = jax.lax.scan(run, carry, slices, length=repeats)
        else:
            each = []
            for i in range(repeats):
                carry, result = run(carry, jax.tree.map(lambda x, i=i: x[i], slices))
                each.append(result)
            results = jax.tree.map(lambda *x: jnp.stack(x), *each)
        changed, outputs = results
        for kind in dict.fromkeys(unit):
            if unit.count(kind) > 1:
                changed[kind] = _flat(changed[kind])
                outputs[kind] = outputs[kind] if self.group > 1 else _flat(outputs[kind])
        return carry, changed, outputs

    def _unit(self, carry: Any, unit: Sequence[str], slices: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Returns one pass over the blocks of a unit."""
        seen = dict.fromkeys(slices, 0)
        blocks, values, before = [], [], []
        for kind in unit:
            own = slices[kind]
            if unit.count(kind) > 1:
                own = jax.tree.map(lambda x, i=seen[kind]: x[i], own)
            seen[kind] += 1
            parameters, rest, value = own
            before.append(jax.tree.leaves(rest))  # here, as a merged block may share them
            blocks.append(nnx.merge(self.kinds[kind].definition, parameters, rest))
            values.append(value)
        results: dict[str, list[Any]] = {kind: [] for kind in slices}
        if self.group > 1:
            carry = self._call(carry, blocks, values, results[unit[0]])
        else:
            for kind, block, value in zip(unit, blocks, values, strict=True):
                carry = self._call(carry, block, value, results[kind])
        changed: dict[str, list[Any]] = {kind: [] for kind in slices}
        for kind, block, old in zip(unit, blocks, before, strict=True):
            rest = nnx.split(block, nnx.Param, ...)[2]
            self.written |= any(new is not x for new, x in zip(jax.tree.leaves(rest), old, strict=True))
            changed[kind].append(rest)
        return carry, *({kind: _together(trees) for kind, trees in each.items()} for each in (changed, results))

    def _call(self, carry: Any, block: Any, values: Any, results: list[Any]) -> Any:
        returned = self.step(carry, block, values)
        carry, output = returned if self.outputs else (returned, None)
        results.append(output)
        return carry


def _by_kind(stack: Any, pattern: Sequence[str] | None) -> Mapping[str, nnx.Module]:
    return {"": stack} if pattern is None else stack


def _segments(chosen: Sequence[str], group: int | None) -> list[tuple[Sequence[str], int]]:
    """Cuts a pattern into units and how often each is repeated."""
    if group is not None:
        return [(("",) * group, len(chosen) // group)]
    count = len(chosen)
    period = next((p for p in range(1, count) if chosen[p:] == chosen[:-p]), count)
    if count and count >= 2 * period:
        repeats, left = divmod(count, period)
        return [(chosen[:period], repeats), *([(chosen[count - left :], 1)] if left else [])]
    return [((kind,), len(list(run))) for kind, run in itertools.groupby(chosen)]


def _rows(tree: Any, first: int, count: int) -> Any:
    return jax.tree.map(lambda x: x if len(x) == count else x[first : first + count], tree)


def _together(trees: list[Any]) -> Any:
    """What the blocks of a kind in one unit have, on a leading axis where they are several."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _flat(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree)


def _joined(trees: list[Any]) -> Any:
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


def _write(module: nnx.Module, old: Any, new: Any, first: int) -> None:
    """Writes variables back to the blocks that have changed them."""

    def put(x: jax.Array, rows: jax.Array) -> jax.Array:
        return rows if len(rows) == len(x) else jnp.concatenate([x[:first], rows, x[first + len(rows) :]])

    nnx.update(module, jax.tree.map(put, old, new))


def _check_pattern(whole: Sequence[str], kinds: Mapping[str, _Kind], group: int) -> None:
    depths = {kind: own.depth for kind, own in kinds.items()}
    counts = {kind: whole.count(kind) for kind in dict.fromkeys((*depths, *whole))}
    if counts != depths:
        raise errors.bad_argument("apply_stack", "pattern", counts, f"as many blocks as the stacks have, {depths}")
    if group > 1 and len(kinds) > 1:
        raise errors.bad_argument("apply_stack", "group", group, "1 with a pattern", "A step takes one block of it.")


def _check_values(values: Mapping[str, Any], chosen: Sequence[str], group: int) -> None:
    if len(chosen) % group:
        raise errors.bad_argument("apply_stack", "group", group, f"a divisor of the {len(chosen)} blocks that are run")
    for kind, tree in values.items():
        for x in jax.tree.leaves(tree):
            if x.shape[:1] != (chosen.count(kind),):
                name = f"per_block[{kind!r}]" if kind else "per_block"
                wanted = f"arrays with a leading axis of {chosen.count(kind)}, the blocks that are run"
                raise errors.bad_shape("apply_stack", name, x, wanted)
