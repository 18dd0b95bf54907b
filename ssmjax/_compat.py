"""The only module that knows about versions of jax and flax (supported: jax >= 0.7.2, flax >= 0.11.2)."""

import jax
import jax.numpy as jnp

__all__ = ["full_like", "lacks_mosaic_gpu", "varies", "vary_alike"]


def full_like(x: jax.Array, value: float) -> jax.Array:
    """`jnp.full_like`, varying over the same manual mesh axes as `x`."""
    return _vary(jnp.full_like(x, value), tuple(sorted(_varying_axes(x))))


def lacks_mosaic_gpu() -> str | None:
    """Why this jax does not run the kernels in Pallas Mosaic GPU, or None if it does."""
    # Since 0.10.2 `plgpu.kernel` takes `out_type` and `scratch_types`.
    return None if jax.__version_info__ >= (0, 10, 2) else f"needs jax 0.10.2 or newer, this is {jax.__version__}"


def vary_alike(tree):
    """Marks every array of a tree as varying over all the manual mesh axes that any of them varies over.

    Inside `jax.shard_map` a loop's carry must have one such type throughout. Outside it this does nothing. The
    transpose sums over the axes added, so gradients of replicated arrays come out right.
    """
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
