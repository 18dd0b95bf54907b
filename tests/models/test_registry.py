"""Every registered model: shapes and dtypes at full size, values at a tiny size; and the registry's messages."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import nnx

import ssmjax
from ssmjax.models import registry
from tests.layers import quick

NAMES = ssmjax.list_models()
CASES = [(name, name) for name in NAMES]


def distinct_when_tiny():
    """One name for each configuration that is left when sizes are made tiny: equal ones would be tested twice."""
    configs = {}
    for name in NAMES:
        config = ssmjax.model_config(name)
        configs.setdefault(dataclasses.replace(config, **registry.get_family(registry.family_of(config)).tiny), name)
    return [(name, name) for name in configs.values()]


def tiny(name, **overrides):
    entry = registry.get_family(registry.family_of(ssmjax.model_config(name)))
    model = ssmjax.create_model(name, **{**entry.tiny, **overrides})
    return model, entry.input_shape(model.config, 2)


def lively(name, **overrides):
    model = quick.lively(lambda: tiny(name, **overrides)[0])
    return model, registry.get_family(registry.family_of(model.config)).input_shape(model.config, 2)


class EveryModelTest(chex.TestCase):
    @parameterized.named_parameters(*CASES)
    def test_full_size(self, name):
        config = ssmjax.model_config(name)
        family = registry.get_family(registry.family_of(config))
        definition, state = nnx.split(nnx.eval_shape(lambda: ssmjax.create_model(name)))
        inputs = jax.ShapeDtypeStruct(family.input_shape(config, 2), family.input_dtype(config))
        out = jax.eval_shape(lambda state, x: nnx.merge(definition, state)(x), state, inputs)
        chex.assert_shape(out, (2, getattr(config, "outputs", config.num_classes)))
        chex.assert_type(out, jnp.float32)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*distinct_when_tiny())
    def test_forward(self, name):
        model, shape = lively(name)
        definition, state = nnx.split(model)
        out = self.variant(lambda state, x: nnx.merge(definition, state)(x))(
            state, jax.random.normal(jax.random.key(1), shape)
        )
        _check(out)

    @parameterized.named_parameters(*distinct_when_tiny())
    def test_forward_and_gradients_in_bfloat16(self, name):
        model, shape = lively(name, dtype="bfloat16")
        definition, state = nnx.split(model)

        @quick.jit
        def run(state, x):
            def loss(state):
                logits = nnx.merge(definition, state)(x)
                return jax.nn.log_softmax(logits)[:, 0].sum(), logits

            gradient, logits = jax.grad(loss, has_aux=True)(state)
            return logits, gradient

        out, gradient = run(state, jax.random.normal(jax.random.key(1), shape))
        _check(out)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, state)
        chex.assert_tree_all_finite(gradient)
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))  # every parameter is used


def _check(out):
    chex.assert_shape(out, (2, 5))
    chex.assert_type(out, jnp.float32)
    chex.assert_tree_all_finite(out)
    assert float(jnp.abs(out[0] - out[1]).max()) > 1e-4  # the output depends on the input


def test_names_are_sorted_and_match_patterns():
    assert sorted(NAMES) == NAMES
    assert ssmjax.list_models("vim_*") == ["vim_base", "vim_nano", "vim_small", "vim_tiny"]
    assert ssmjax.list_models("nothing*") == []


def test_the_seed_determines_the_parameters():
    one, same, other = (nnx.state(tiny("vim_tiny", seed=seed)[0]) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one, same)
    assert not np.array_equal(jax.tree.leaves(one)[-1], jax.tree.leaves(other)[-1])


def test_a_direct_construction_gives_the_same_parameters():
    model, _ = tiny("vim_tiny")
    direct = type(model)(model.config, rngs=nnx.Rngs(params=jax.random.key(0)))
    chex.assert_trees_all_close(nnx.state(model), nnx.state(direct), atol=1e-6)


def test_models_of_one_configuration_compile_once():
    (first, shape), (second, _) = lively("vim_tiny"), lively("vim_tiny", drop_rate=0.0)

    traces = 0

    def counted(definition, state, x):
        nonlocal traces
        traces += 1
        return nnx.merge(definition, state)(x)

    run = quick.jit(counted, static_argnums=0)
    for model in (first, second, first):
        run(*nnx.split(model), jnp.ones(shape))
    assert traces == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssmjax.create_model("vim_tinny"), "Unknown model 'vim_tinny'. Did you mean 'vim_tiny'"),
        (lambda: ssmjax.model_config("vim"), "Unknown model 'vim'.*Known: .*vim_tiny"),
        (
            lambda: ssmjax.create_model("vim_nano", image_size=32),
            "Unknown option 'image_size'. Did you mean 'img_size'",
        ),
        (lambda: ssmjax.create_model("vim_nano", depth="six"), "VimConfig: depth must be an integer, got 'six'"),
        (
            lambda: ssmjax.create_model("vim_nano", dtype="float64"),
            "dtype must be 'float32' or 'bfloat16' or 'float16', got 'float64'",
        ),
        (lambda: registry.get_family("vin"), "Unknown model family 'vin'. Did you mean 'vim'"),
        (lambda: registry.family_of(3), "family_of: config must be a configuration of a registered family, got 3"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dtype_may_be_a_jax_type():
    assert lively("vim_tiny", dtype=jnp.bfloat16)[0].config.dtype == "bfloat16"


def test_configurations_are_values():
    config = ssmjax.model_config("vim_nano")
    assert config == dataclasses.replace(config) and hash(config) == hash(dataclasses.replace(config))


def test_a_name_is_not_redefined_and_a_config_is_checked():
    from ssmjax.models.registry import register_model
    from ssmjax.models.vim import VimConfig

    with pytest.raises(ValueError, match="name must be a name that is not taken"):
        register_model("vim_tiny", "vim", VimConfig(depth=1))
    with pytest.raises(ValueError, match="Unknown model family 'vimm'.*Did you mean 'vim'"):
        register_model("vim_other", "vimm", VimConfig())
    with pytest.raises(ValueError, match="config must be a VimConfig"):
        register_model("vim_other", "vim", {"depth": 1})
