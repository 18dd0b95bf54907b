"""Compact Vim: what each stage sees, the convolution against a library's, directions, and the drops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.layers.vision.local_conv import LocalConv
from ssmjax.models.vim_compact import CompactVim, CompactVimBlock, CompactVimConfig
from tests.layers import quick

TINY = CompactVimConfig(img_size=8, widths=(8, 16), depths=(2, 2), num_classes=5)


@pytest.fixture(scope="module")
def model() -> CompactVim:
    return quick.made(lambda: CompactVim(TINY, rngs=nnx.Rngs(0)))


def test_local_convolution_is_a_residual_depthwise_convolution(key):
    layer = LocalConv(4, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jax.random.normal(key, (2, 5, 3, 4))
    wanted = x + jnp.arange(4.0)[None, None, None]
    wanted += jax.lax.conv_general_dilated(
        x,
        layer.kernel[...][:, :, None],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
        precision="highest",
    )
    chex.assert_trees_all_close(layer(x), wanted, atol=1e-5)


def test_columns_are_rows_of_the_transposed_grid(key):
    block = quick.made(lambda: CompactVimBlock(CompactVimConfig(local_conv=False), 8, rngs=nnx.Rngs(0)))
    x = jax.random.normal(key, (2, 3, 4, 8))
    both = quick.run(lambda block, x: (block(x, columns=True), block(x.swapaxes(1, 2)).swapaxes(1, 2)), block, x)
    chex.assert_trees_all_close(*both, atol=1e-6)


def test_logits_are_the_head_of_the_mean_features(model, key):
    images = jax.random.normal(key, (2, 8, 8, 3))
    features, logits = quick.run(lambda model, x: (model.features(x), model(x)), model, images)
    chex.assert_shape(features, (2, 16))
    chex.assert_trees_all_close(logits, model.head(features), atol=1e-5)


def test_the_class_follows_any_part_of_the_image(model, key):
    images = jax.random.normal(key, (1, 8, 8, 3))
    grad = quick.run(lambda model, x: jax.grad(lambda x: model(x)[0, 0])(x), model, images)
    assert np.all(np.abs(np.asarray(grad)).max(-1) > 0)


def test_stochastic_depth_needs_a_key_and_acts_in_training_only(key):
    model = ssmjax.create_model("vim_compact_nano", img_size=8, widths=(8,), depths=(2,), drop_path_rate=0.5)
    images = jax.random.normal(key, (16, 8, 8, 3))
    with pytest.raises(ValueError, match="needs a random key"):
        model(images, train=True)
    run = nnx.jit(lambda model, key: model(images, train=True, key=key))
    first, second = (run(model, jax.random.key(i)) for i in (1, 2))
    assert not np.allclose(first, second)
    chex.assert_trees_all_close(run(model, jax.random.key(1)), first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 10}, "img_size must be a multiple of 4"),
        ({"depths": (2,)}, "of the length of widths, 2"),
        ({"depths": (1, 2)}, "even with alternate_axes=True"),
        ({"stem_stride": 3}, "1, 2 or 4"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ValueError, match=message):
        CompactVimConfig(**({"img_size": 8} | changes))


def test_the_small_size_is_that_of_a_compact_transformer():
    model = nnx.eval_shape(lambda: ssmjax.create_model("vim_compact_small"))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == 3_609_994  # CCT-7/3x1 has 3.76 million
