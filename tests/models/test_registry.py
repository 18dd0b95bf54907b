"""Every registered model: shapes and dtypes at full size, values at a tiny size; and the registry's messages."""

import dataclasses
from typing import no_type_check

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import nnx

import ssmjax
from ssmjax.models import registry
from ssmjax.models.config import check_fields
from tests.layers import quick
from tests.models.sizes import DISTINCT, FIRST, NAMES, OTHERS
from tests.repo.sources import ROOT

DISTINCT_CASES = [(name, name) for name in DISTINCT]
FIRST_CASES = [(name, name) for name in FIRST]
LATER_CASES = [case for case in DISTINCT_CASES if case not in FIRST_CASES]
# Without families whose gradients other default tests take, or which are another one but for the loss.
ELSEWHERE = ("dis_base", "dss_regressor", "vim_compact_nano")
GRADIENT_CASES = [case for case in FIRST_CASES if case[0] not in ELSEWHERE]
LATER_GRADIENT_CASES = [case for case in DISTINCT_CASES if case not in GRADIENT_CASES]


def tiny(name, **overrides):
    entry = registry.get_family(registry.family_of(ssmjax.model_config(name)))
    model = ssmjax.create_model(name, **{**entry.tiny, **overrides})
    return model, entry.input_shape(model.config, 2)


def lively(name, **overrides):
    model = quick.lively(lambda: tiny(name, **overrides)[0])
    return model, registry.get_family(registry.family_of(model.config)).input_shape(model.config, 2)


def arguments(config):
    """Random arguments of a call by name, of two examples; integers are small enough for any vocabulary."""
    specs = registry.get_family(registry.family_of(config)).inputs(config, 2)
    rng = np.random.default_rng(1)
    return {
        name: jnp.asarray(
            rng.normal(size=x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else rng.integers(0, 5, x.shape), x.dtype
        )
        for name, x in specs.items()
    }


def output_shape(config):
    """The shape of an output for two examples."""
    return 2, *getattr(config, "output_shape", (getattr(config, "outputs", getattr(config, "num_classes", None)),))


def check_full_size(name):
    """Shapes and dtypes, without computing anything."""
    config = ssmjax.model_config(name)
    family = registry.get_family(registry.family_of(config))
    definition, state = nnx.split(nnx.eval_shape(lambda: ssmjax.create_model(name)))
    inputs = family.inputs(config, 2)
    out = jax.eval_shape(lambda state, x: nnx.merge(definition, state)(**x), state, inputs)
    chex.assert_shape(out, output_shape(config))
    chex.assert_type(out, jnp.float32)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))


def check_forward(name, variant):
    model, _ = lively(name)
    definition, state = nnx.split(model)
    out = variant(lambda state, x: nnx.merge(definition, state)(**x))(state, arguments(model.config))
    _check(model, out)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_full_size_of_the_others(name):
    check_full_size(name)


def check_bfloat16(name):
    model, _ = lively(name, dtype="bfloat16")
    definition, state = nnx.split(model)

    @quick.jit
    def run(state, x):
        def loss(state):
            out = nnx.merge(definition, state)(**x)
            return jax.nn.log_softmax(out.reshape(2, -1))[:, 0].sum(), out

        gradient, out = jax.grad(loss, has_aux=True)(state)
        return out, gradient

    out, gradient = run(state, arguments(model.config))
    _check(model, out)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, state)
    chex.assert_tree_all_finite(gradient)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jax.device_get(gradient)))  # each is used


class EveryFamilyTest(chex.TestCase):
    @parameterized.named_parameters(*FIRST_CASES)
    def test_full_size(self, name):
        check_full_size(name)

    @parameterized.named_parameters(*GRADIENT_CASES)
    def test_forward_and_gradients_in_bfloat16(self, name):
        check_bfloat16(name)


@pytest.mark.slow
class EveryKindTest(chex.TestCase):
    """What the default tests leave out: other kinds of a family, and float32, where bfloat16 runs the same code."""

    @parameterized.named_parameters(*LATER_CASES)
    def test_full_size(self, name):
        check_full_size(name)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*DISTINCT_CASES)
    def test_forward(self, name):
        check_forward(name, self.variant)

    @parameterized.named_parameters(*LATER_GRADIENT_CASES)
    def test_forward_and_gradients_in_bfloat16(self, name):
        check_bfloat16(name)


def _check(model, out):
    chex.assert_shape(out, output_shape(model.config))
    chex.assert_type(out, jnp.float32)
    chex.assert_tree_all_finite(out)
    assert np.abs(np.subtract(*jax.device_get(out))).max() > 1e-4  # the output depends on the input


def test_names_are_sorted_and_match_patterns():
    assert sorted(NAMES) == NAMES
    compact = ["vim_compact_nano", "vim_compact_small"]
    assert ssmjax.list_models("vim_*") == ["vim_base", *compact, "vim_nano", "vim_small", "vim_tiny"]
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
        (lambda: registry.get_family("vin"), "Unknown model family 'vin'. Did you mean .*'vim'"),
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


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    registry.families()  # so that those of the package are there before
    monkeypatch.setattr(registry, "_families", dict(registry._families))
    monkeypatch.setattr(registry, "_models", dict(registry._models))
    monkeypatch.setattr(registry, "_plugins", set())


@no_type_check
@dataclasses.dataclass(frozen=True)
class TwoInputsConfig:
    width: int = 3
    num_classes: int = 2
    __post_init__ = check_fields


class TwoInputs(nnx.Module):
    def __init__(self, config, *, rngs):
        self.config = config
        self.head = nnx.Linear(config.width, config.num_classes, rngs=rngs)

    def __call__(self, left, right):
        return {"logits": self.head(left) + self.head(right)}


def two_inputs(config, batch):
    return {name: jax.ShapeDtypeStruct((batch, config.width), jnp.float32) for name in ("left", "right")}


def family(**fields):
    return registry.Family(**({"name": "two", "config": TwoInputsConfig, "build": TwoInputs} | fields))


def test_a_family_of_another_package(own_registry):
    registry.register_family(family(inputs=two_inputs))
    registry.register_model("two_small", "two", TwoInputsConfig())
    assert ssmjax.list_models("two*") == ["two_small"]
    model = ssmjax.create_model("two_small", num_classes=5)
    text = ssmjax.summary(model)
    assert "(1, 3) float32, (1, 3) float32 -> (1, 5) float32" in text and "20 parameters" in text
    entry = registry.get_family("two")
    assert entry.package == __name__.partition(".")[0]
    assert (entry.input_shape(model.config, 4), entry.input_dtype(model.config)) == ((4, 3), jnp.float32)


def test_the_inputs_of_a_family_with_one_array():
    entry = registry.get_family("sequence_classifier")
    config = ssmjax.model_config("s5_classifier_text")
    (name, spec), *others = entry.inputs(config, 2).items()
    assert (name, spec.shape, spec.dtype, others) == ("inputs", (2, 64), jnp.int32, [])
    assert entry.input_dtype(config) == jnp.int32


def test_a_family_or_class_is_not_taken_over(own_registry):
    registry.register_family(family(inputs=two_inputs))
    registry.register_family(family(inputs=two_inputs, adapts=()))  # a notebook's cell once more
    assert registry.get_family("two").adapts == ()
    with pytest.raises(ValueError, match="family must be another name and configuration class than those of 'vim'"):
        registry.register_family(family(name="vim", inputs=two_inputs))
    with pytest.raises(ValueError, match="than those of 'two'"):
        registry.register_family(family(name="three", inputs=two_inputs))
    with pytest.raises(ValueError, match="Family: inputs must be a function"):
        family()


def test_an_entry_point_is_imported_where_a_name_is_not_known(own_registry, monkeypatch):
    class Entry:
        name, value = "toys", "toys.models"

        def load(self):
            registry.register_family(family(inputs=two_inputs))
            registry.register_model("two_small", "two", TwoInputsConfig())

    asked = []
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: asked.append(group) or [Entry()])
    assert ssmjax.model_config("vim_nano").depth == 6 and asked == []
    assert ssmjax.model_config("two_small") == TwoInputsConfig()
    with pytest.raises(ValueError, match="Unknown model 'two_smal'. Did you mean 'two_small'"):
        ssmjax.create_model("two_smal")
    assert set(asked) == {"ssmjax.families"}


def test_the_entry_points_of_this_project_are_modules():
    import importlib.util
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = project["entry-points"][registry.ENTRY_POINTS].values()
    assert modules and all(importlib.util.find_spec(name) is not None for name in modules)
