"""The only module that knows about versions of jax and flax (supported: jax >= 0.7.2, flax >= 0.11.2)."""

import jax
import jax.numpy as jnp

from ssmjax.shapes import Array

__all__ = ["full_like", "is_split", "lacks_mosaic_gpu", "look_up", "split_as", "varies", "vary_alike", "whole", "zeros"]


def full_like(x: jax.Array, value: float) -> jax.Array:
    """`jnp.full_like`, varying over the same manual mesh axes as `x`."""
    return _vary(jnp.full_like(x, value), tuple(sorted(_varying_axes(x))))


def zeros(shape: tuple[int, ...], dtype, like: Array) -> jax.Array:
    """`jnp.zeros`, split over an explicit mesh as the rows of `like` are; see `split_as`."""
    return split_as(jnp.zeros(shape, dtype), like)


def split_as(tree, like: Array):
    """Arrays (b ...) whose rows are split over the devices of a mesh as those of `like` (b ...) are.

    Over a mesh with explicit axes, which is what `jax.make_mesh` makes by default, jax joins no array that is split to
    one that is not. Under any other mesh, and without one, this does nothing.
    """
    sharding = _explicit(like)
    if sharding is None:
        return tree
    rows = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(sharding.spec[0]))
    return jax.tree.map(lambda x: x if jnp.ndim(x) == 0 or _explicit(x) else jax.sharding.reshard(x, rows), tree)


def look_up(table: jax.Array, index: Array) -> jax.Array:
    """`jnp.take(table, index, axis=0)`, split over an explicit mesh as `index` is, of which newer jax must be told."""
    sharding = _explicit(index)
    if sharding is None:
        return jnp.take(table, index, axis=0)
    spec = (*sharding.spec, *[None] * (index.ndim - len(sharding.spec)), *[None] * (table.ndim - 1))
    out = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec))
    return table.at[index].get(mode="fill", out_sharding=out)


def whole(x: Array) -> Array:
    """An array (b ...) of which every device of an explicit mesh has all rows."""
    sharding = _explicit(x)
    if sharding is None:
        return x
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))


def is_split(x: Array) -> bool:
    """Whether the rows of an array are split over an explicit mesh."""
    return _explicit(x) is not None


def _explicit(x) -> jax.sharding.NamedSharding | None:
    """How an array is split over an explicit mesh, or None if its rows are not."""
    kind = getattr(jax.typeof(x), "sharding", None)
    if not getattr(kind, "spec", ()) or kind.spec[0] is None:
        return None
    return kind if isinstance(x, jax.core.Tracer) else x.sharding


def lacks_mosaic_gpu() -> str | None:
    """Why this jax does not run the kernels in Pallas Mosaic GPU, or None if it does."""
    # Since 0.10.2 `plgpu.kernel` takes `out_type` and `scratch_types`.
    return None if jax.__version_info__ >= (0, 10, 2) else f"needs jax 0.10.2 or newer, this is {jax.__version__}"


def vary_alike(tree):
    """Marks every array of a tree as varying over all the manual mesh axes that any of them varies over.

    Inside `jax.shard_map` a loop's carry must have one such type throughout. Outside it this does nothing. The
    transpose sums over the axes added, so gradients of replicated arrays come out right.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    axes = frozenset().union(*(_varying_axes(leaf) for leaf in jax.tree.leaves(tree)))
    return jax.tree.map(lambda leaf: _vary(leaf, tuple(sorted(axes - _varying_axes(leaf)))), tree) if axes else tree


def varies(tree) -> bool:
    """Whether any array varies over a manual mesh axis, as inside `jax.shard_map` unless `check_vma=False`."""
    return any(_varying_axes(leaf) for leaf in jax.tree.leaves(tree))


def _varying_axes(x) -> frozenset:
    kind = jax.typeof(x)
    # Newer jax keeps the varying axes in `manual_axis_type`, older in `vma`.
    return kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma


def _vary(x: jax.Array, axes: tuple) -> jax.Array:
    axes = tuple(axis for axis in axes if axis not in _varying_axes(x))
    if not axes:
        return x
    return jax.lax.pcast(x, axes, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary(x, axes)
