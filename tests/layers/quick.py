"""Less compiling in tests: one jitted program without optimization, and parameters that need no program at all."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


def jit(f, **options):
    """`jax.jit` for a function that runs once on tiny arrays: most of the compiler's work would be wasted."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0}, **options)


def apply(module, *args, method="__call__", **kwargs):
    """Calls a module, or a method of it, under `jit`."""
    definition, state = nnx.split(module)
    return jit(lambda state, args, kwargs: getattr(nnx.merge(definition, state), method)(*args, **kwargs))(
        state, args, kwargs
    )


def run(function, module, *args):
    """`function(module, *args)` under `jit`: several calls of a module in one program, or calls with options."""
    definition, state = nnx.split(module)
    return jit(lambda state, args: function(nnx.merge(definition, state), *args))(state, args)


def made(make):
    """The module that `make` builds, with its own initial values, by one program instead of one for each shape."""
    definition, _ = nnx.split(nnx.eval_shape(make))
    return nnx.merge(definition, jit(lambda: nnx.split(make())[1])())


def first(cases: Iterable, count: int = 1) -> list:
    """Cases for `parametrize`: the first of them run by default; the others, variations of the same kind, are slow."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=[pytest.mark.slow] * (i >= count)) for i, row in enumerate(rows)]


def lively(make, seed=1):
    """A module with random numbers in every parameter, so that a swapped or unused one shows.

    Args:
        make: Builds the module; only traced.
        seed: Determines the numbers.
    """
    definition, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)

    def draw(path, spec):
        noise = rng.standard_normal(spec.shape)
        name = jax.tree_util.keystr(path)
        if any(f"'{conv}'" in name for conv in ("conv", "conv1", "conv2")) and len(spec.shape) > 3:
            noise = noise / np.prod(spec.shape[-4:-1]) ** 0.5
        elif "kernel" in name:
            noise = noise / np.prod(spec.shape[-2:-1] if "conv1d" not in name else (2,)) ** 0.5
        elif "A_log" in name or "A_b_log" in name:
            noise = np.log(np.arange(1, spec.shape[-1] + 1)) + 0.3 * noise
        elif "'var'" in name:
            noise = 1 + 0.3 * np.abs(noise)
        elif "scale" in name or "'D" in name or "gamma" in name:
            noise = 1 + 0.3 * noise
        else:
            noise = 0.3 * noise
        return jnp.asarray(noise, spec.dtype)

    return nnx.merge(definition, jax.tree_util.tree_map_with_path(draw, state))
