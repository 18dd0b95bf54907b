"""ViT: published sizes, PyTorch's own transformer block as the reference, converter, head surgery, messages."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch import vit as converter
from ssmjax.models.summary import count_parameters
from ssmjax.models.vit import ViT, ViTConfig
from tests.layers import quick

TINY = ViTConfig(img_size=16, patch_size=8, num_classes=5, d_model=16, depth=2, heads=2)


def make(**options):
    return quick.lively(lambda: ViT(dataclasses.replace(TINY, **options), rngs=nnx.Rngs(0)))


def images(side=16):
    return jax.random.normal(jax.random.key(1), (2, side, side, 3))


@pytest.mark.parametrize(("name", "number"), quick.first([("vit_tiny", 5_717_416), ("vit_small", 22_050_664)]))
def test_parameter_counts_are_the_published_ones(name, number):
    assert count_parameters(nnx.eval_shape(lambda: ssmjax.create_model(name))) == number


def test_equals_the_equations_in_float64():
    model = make()
    p = {name: np.asarray(x, np.float64) for name, x in model_arrays(model).items()}

    def norm(x, name, i=...):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}.scale"][i] + p[f"{name}.bias"][i]

    def linear(x, name, i):
        return x @ p[f"blocks.{name}.kernel"][i] + p[f"blocks.{name}.bias"][i]

    x = np.asarray(images(), np.float64).reshape(2, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, -1)
    x = x @ p["patch_embed.proj.kernel"].reshape(-1, 16) + p["patch_embed.proj.bias"]
    x = np.concatenate([np.broadcast_to(p["cls_token"], (2, 1, 16)), x], 1) + p["pos_embed"]
    for i in range(2):
        q, k, v = linear(norm(x, "blocks.norm1", i), "attn.qkv", i).reshape(2, 5, 3, 2, 8).transpose(2, 0, 3, 1, 4)
        weights = np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(8))
        y = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + linear(y.transpose(0, 2, 1, 3).reshape(2, 5, 16), "attn.proj", i)
        hidden = linear(norm(x, "blocks.norm2", i), "mlp.fc1", i)
        gelu = np.asarray(jax.scipy.stats.norm.cdf(jnp.asarray(hidden, jnp.float32)), np.float64) * hidden
        x = x + linear(gelu, "mlp.fc2", i)
    expected = norm(x, "norm")[:, 0] @ p["head.kernel"] + p["head.bias"]
    np.testing.assert_allclose(quick.apply(model, images()), expected, rtol=1e-4, atol=1e-4)
    chex.assert_shape(quick.apply(model, images(), method="features")[0], (2, 2, 2, 16))


def test_the_converter_is_exact_both_ways():
    model = make()
    theirs = converter.to_reference(model_arrays(model), model.config)
    chex.assert_shape(theirs["blocks.1.attn.qkv.weight"], (48, 16))
    chex.assert_trees_all_equal(converter.convert(theirs, model.config), model_arrays(model))


def test_a_new_head_and_image_size_on_loading(tmp_path):
    ssmjax.save_pretrained(make(), tmp_path)
    loaded = ssmjax.load_pretrained(tmp_path, num_classes=3, img_size=24)
    chex.assert_shape(quick.apply(loaded, images(24)), (2, 3))


def test_drop_path_acts_in_training_only():
    definition, state = nnx.split(make(drop_path_rate=0.5))
    train = quick.jit(lambda state, key: nnx.merge(definition, state)(images(), train=True, key=key))
    assert float(jnp.abs(train(state, jax.random.key(0)) - train(state, jax.random.key(3))).max()) > 1e-3


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    with pytest.raises(ValueError, match=r"heads must be a divisor of d_model, 16"):
        dataclasses.replace(TINY, heads=3)
    model = nnx.eval_shape(lambda: ViT(dataclasses.replace(TINY, drop_path_rate=0.1), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"Channels first\?"):
        model(jnp.zeros((2, 3, 16, 16)))
    with pytest.raises(ValueError, match=r"needs a random key"):
        model(images(), train=True)
