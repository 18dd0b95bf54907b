"""`model.train()` and `model.eval()` decide where `train` is left out; one that is given counts in any case."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ssmjax.models import registry
from ssmjax.models.vim import Vim, VimConfig

CONFIG = VimConfig(img_size=8, patch_size=4, d_model=16, depth=2, num_classes=5, drop_rate=0.5)


@pytest.fixture(scope="module")
def model():
    return Vim(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (2, 8, 8, 3))


@nnx.jit
def call(model, images, key):
    return model(images, key=key)


def run(model, images, seed=0):
    return call(model, images, jax.random.key(seed))


def test_the_mode_decides_where_train_is_left_out(model, images):
    fresh = run(model, images)
    model.train()
    one, other = run(model, images, 1), run(model, images, 2)
    assert (one != other).any() and (one != fresh).any()
    assert (run(model, images, 1) == one).all()
    model.eval()
    assert (run(model, images, 1) == fresh).all() and (run(model, images, 2) == fresh).all()


def test_train_that_is_given_counts(model, images):
    model.train()
    evaluated = nnx.jit(lambda model, images: model(images, train=False))(model, images)
    model.eval()
    assert (evaluated == run(model, images)).all()
    definition, state = nnx.split(model)
    trained = jax.eval_shape(lambda s: nnx.merge(definition, s)(images, train=True, key=jax.random.key(0)), state)
    assert trained.shape == evaluated.shape
    with pytest.raises(ValueError, match="needs a random key"):
        model(images, train=True)


def test_a_model_in_training_asks_for_a_key(model, images):
    model.train()
    with pytest.raises(ValueError, match="needs a random key"):
        model(images)
    model.eval()


def test_a_clone_keeps_the_mode(model):
    model.train()
    clone = nnx.clone(model)
    model.eval()
    assert not clone.deterministic and model.deterministic


def test_every_model_with_an_argument_train_follows_its_mode():
    for family in registry.families():
        build = family.build
        if not inspect.isclass(build) or "train" not in inspect.signature(build.__call__).parameters:
            continue
        assert build.deterministic is True, build
        assert inspect.signature(build.__call__).parameters["train"].default is None, build


def test_evaluation_leaves_the_mode_alone(images):
    from ssmjax.training.evaluate import evaluate

    model = Vim(dataclasses.replace(CONFIG, depth=1), rngs=nnx.Rngs(0))
    model.train()
    found = evaluate(model, [{"image": images, "label": jnp.zeros(2, jnp.int32)}])
    assert found["count"] == 2 and not model.deterministic
