"""Patch embeddings: the order of tokens, overlap, sizes, messages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import ConvStem, PatchEmbed
from tests.layers import quick


@pytest.mark.parametrize(
    ("size", "patch", "stride", "grid"), [((8, 12), 4, None, (2, 3)), ((8, 8), 4, 2, (3, 3)), ((9, 13), 5, 4, (2, 3))]
)
def test_tokens_are_patches_in_row_major_order(key, size, patch, stride, grid):
    embed = quick.made(lambda: PatchEmbed(5, patch_size=patch, stride=stride, rngs=nnx.Rngs(0)))
    images = jax.random.normal(key, (2, *size, 3))
    tokens, step = np.asarray(quick.apply(embed, images)), stride or patch
    chex.assert_shape(tokens, (2, grid[0] * grid[1], 5))
    kernel = np.asarray(embed.proj.kernel[...]).reshape(-1, 5)
    for i in range(grid[0]):
        for j in range(grid[1]):
            cut = np.asarray(images)[:, i * step : i * step + patch, j * step : j * step + patch].reshape(2, -1)
            chex.assert_trees_all_close(tokens[:, i * grid[1] + j], cut @ kernel, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "grid"), [((8, 12), 4, (2, 3)), ((9, 7), 2, (5, 4)), ((28, 28), 8, (4, 4)), ((1, 1), 4, (1, 1))]
)
def test_conv_stem_rounds_sizes_up(size, stride, grid):
    stem = nnx.eval_shape(lambda: ConvStem(8, stride=stride, in_channels=1, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(stem)
    out = jax.eval_shape(lambda state, x: nnx.merge(definition, state)(x), state, jnp.ones((2, *size, 1)))
    chex.assert_shape(out, (2, grid[0] * grid[1], 8))


def test_conv_stem_keeps_places_apart(key):
    stem = quick.made(lambda: ConvStem(8, stride=4, rngs=nnx.Rngs(0)))
    images = jax.random.normal(key, (1, 32, 32, 3))
    run = jax.jit(stem)
    changed = np.not_equal(run(images), run(images.at[0, 0, 0].add(1.0))).any(-1)[0]
    assert changed.nonzero()[0].tolist() == [0]


@pytest.mark.parametrize("stride", [0, 1, 3, 12])
def test_conv_stem_needs_a_power_of_two(stride):
    with pytest.raises(ValueError, match=f"ConvStem: stride must be a power of two of at least 2, got {stride}"):
        ConvStem(8, stride=stride, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("size", [(20, 16), (16, 19)])
def test_rows_and_columns_that_no_patch_reads_are_refused(size):
    layer = PatchEmbed(8, patch_size=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="PatchEmbed: the size of images must be 8 plus a multiple of 8"):
        layer(jnp.zeros((1, *size, 3)))
