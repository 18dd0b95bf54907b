"""MambaVision: published sizes, windows, batch statistics, the converter, messages."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch import mambavision as converter
from ssmjax.layers import join_windows, split_windows
from ssmjax.models.mambavision import MambaVision, MambaVisionConfig
from ssmjax.models.summary import count_parameters
from tests.layers import quick

TINY = MambaVisionConfig(
    img_size=32, num_classes=5, dim=8, in_dim=4, depths=(1, 1, 3, 1), heads=(2, 2), windows=(2, 1), d_state=2
)

PUBLISHED = {
    "mambavision_tiny": 31_798_003,
    "mambavision_tiny2": 35_107_763,
    "mambavision_small": 50_145_911,
    "mambavision_base": 97_692_343,
    "mambavision_large": 227_971_775,
    "mambavision_large2": 241_565_551,
}


def make(**options):
    return quick.lively(lambda: MambaVision(dataclasses.replace(TINY, **options), rngs=nnx.Rngs(0)))


def images(side=32, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, side, side, 3))


@pytest.mark.parametrize(("name", "number"), quick.first(PUBLISHED.items()))
def test_parameter_counts_are_the_published_ones(name, number):
    model = nnx.eval_shape(lambda: ssmjax.create_model(name))
    # The published figure counts the statistics of the batch norms, and PyTorch's counter of each.
    statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert count_parameters(model) + sum(x.size for x in statistics) + len(converter_counters(model)) == number


def converter_counters(model):
    return [name for name in model_arrays(model) for _ in range(len_of_stack(model, name)) if name.endswith(".mean")]


def len_of_stack(model, name):
    return model_arrays(model)[name].shape[0] if ".blocks." in name else 1


def test_windows_fill_up_with_zeros_and_are_cropped():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    windows = split_windows(x, 2)
    chex.assert_shape(windows, (2 * 3 * 2, 4, 4))
    np.testing.assert_array_equal(windows[0], x[0, :2, :2].reshape(4, 4))
    np.testing.assert_array_equal(windows[5, 1:], 0)  # the last window of the first image holds one pixel
    np.testing.assert_array_equal(join_windows(windows, 2, 5, 3), x)


def test_features_statistics_and_drop_path():
    model = make(drop_path_rate=0.5, layer_scale=0.5)
    maps = quick.apply(model, images(), method="features")
    chex.assert_shape(maps, [(2, 8, 8, 8), (2, 4, 4, 16), (2, 2, 2, 32), (2, 1, 1, 64)])
    definition, state = nnx.split(model)

    @quick.jit
    def train(state, key):
        model = nnx.merge(definition, state)
        return model(images(), train=True, key=key), nnx.state(model, nnx.BatchStat)

    (first, after), (second, _) = (train(state, jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(np.subtract(first, second)).max() > 1e-3
    for old, new in zip(jax.tree.leaves(nnx.state(model, nnx.BatchStat)), jax.tree.leaves(after), strict=True):
        assert np.abs(np.subtract(old, new)).max() > 1e-6
    with pytest.raises(ValueError, match=r"needs a random key"):
        model(images(), train=True)


def test_the_converter_is_exact_both_ways_with_statistics():
    model = make(qk_norm=True, layer_scale_conv=0.1)
    theirs = converter.to_reference(model_arrays(model), model.config)
    assert "levels.2.blocks.2.mixer.qkv.weight" in theirs and "levels.2.blocks.1.mixer.A_log" in theirs
    assert theirs["norm.num_batches_tracked"].dtype == np.int64
    chex.assert_trees_all_equal(
        converter.convert({f"module.{name}": x for name, x in theirs.items()}, model.config), model_arrays(model)
    )
    theirs.pop("norm.running_var")
    with pytest.raises(ValueError, match=r"missing: norm.running_var"):
        converter.convert(theirs, model.config)


def test_a_new_head_on_loading(tmp_path):
    ssmjax.save_pretrained(make(), tmp_path)
    loaded = ssmjax.load_pretrained(tmp_path, num_classes=3, img_size=64)
    chex.assert_shape(quick.apply(loaded, images(64)), (2, 3))


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    with pytest.raises(ValueError, match=r"windows must be no larger than the maps.*Use windows=\(2, 1\)"):
        MambaVisionConfig(img_size=32)
    with pytest.raises(ValueError, match=r"heads must be divisors of the widths"):
        dataclasses.replace(TINY, heads=(3, 2))
    model = nnx.eval_shape(lambda: MambaVision(TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"Channels first\?"):
        model(jnp.zeros((2, 3, 32, 32)))
    small = make()
    theirs = converter.to_reference(model_arrays(small), small.config)
    with pytest.raises(ValueError, match="(?s)the arrays do not fit the model.*patch_embed"):
        converter.convert(theirs, dataclasses.replace(TINY, dim=2 * TINY.dim))
