"""Sequence classifiers: sizes of the papers, padding, batch statistics, rates, pairs, regressors, messages."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ssmjax
from ssmjax.models.sequence_classifier import (
    SequenceClassifier,
    SequenceConfig,
    SequenceRegressor,
    SequenceRegressorConfig,
)
from ssmjax.models.sequence_presets import PRESETS
from ssmjax.models.summary import count_parameters
from ssmjax.training.fit import FitConfig, fit
from tests.layers import quick

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

SEQUENTIAL = ("s4", "s4d", "dss", "s5", "lru")

PUBLISHED = {
    "s4_classifier_listops": 815_186,
    "s4_classifier_text": 843_594,
    "s4_classifier_image": 3_564_682,
    "s4_classifier_pathfinder": 1_288_706,
    "s4_classifier_pathx": 1_288_706,
    "s4_classifier_scifar": 3_566_858,
    "s4_classifier_scifar_ablation": 136_202,
    "s4_classifier_speech": 306_851,
    "s5_classifier_listops": 188_490,
    "s5_classifier_text": 1_321_154,
    "s5_classifier_retrieval": 772_098,
    "s5_classifier_image": 5_133_706,
    "s5_classifier_pathfinder": 1_113_602,
    "s5_classifier_pathx": 694_018,
    "s5_classifier_speech": 283_523,
}
"""Counted in the originals' models."""


def abstract(name, **overrides):
    return nnx.eval_shape(lambda: ssmjax.create_model(name, **overrides))


def nano(layer, **overrides):
    """A tiny model with random numbers in every parameter."""
    small = {"d_model": 8, "d_state": 4, "l_max": 16 if layer == "s4" else None, "layer_options": ()}
    return quick.lively(lambda: ssmjax.create_model(f"{layer}_classifier_nano", **(small | overrides)))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_as_in_the_original(name):
    assert count_parameters(abstract(name)) == PUBLISHED[name]


def test_parameters_of_retrieval_and_s4nd():
    """The original's 833,608 are without the head, which here are two linear layers; S4ND's are 3.96 million."""
    width = 256
    head = (4 * width + 1) * width + (width + 1) * 2
    assert count_parameters(abstract("s4_classifier_retrieval")) - head == 833_608
    assert round(count_parameters(abstract("s4nd_classifier")) / 1e6, 2) == 3.96


def test_names():
    for layer in (*SEQUENTIAL, "s4nd"):
        assert {f"{layer}_classifier", f"{layer}_classifier_nano"} <= set(ssmjax.list_models("*_classifier*"))
    assert set(PRESETS) <= set(ssmjax.list_models("*_classifier*"))
    assert {f"{layer}_regressor" for layer in SEQUENTIAL} == set(ssmjax.list_models("*_regressor"))


@pytest.mark.parametrize("layer", SEQUENTIAL)
def test_padding_is_as_if_the_sequences_were_alone(key, layer):
    model, x = nano(layer, bidirectional=True), jax.random.normal(key, (3, 16, 1))
    lengths = (16, 9, 1)
    mask = jnp.arange(16)[None] < jnp.array(lengths)[:, None]
    logits = quick.apply(model, x, mask=mask)
    on_the_right = jnp.stack([jnp.roll(row, 16 - n, 0) for row, n in zip(x, lengths, strict=True)])
    np.testing.assert_allclose(quick.apply(model, on_the_right, mask=mask[:, ::-1]), logits, atol=1e-4)
    np.testing.assert_allclose(quick.apply(model, x[1:2, :9])[0], logits[1], atol=1e-4)


def test_a_nan_in_padding_reaches_no_gradient(key):
    definition, state = nnx.split(nano("s4d"))
    x, lengths = jax.random.normal(key, (2, 7, 1)), jnp.array([7, 4])

    @quick.jit
    def gradients(x):
        return jax.grad(lambda state: jnp.sum(nnx.merge(definition, state)(x, lengths=lengths) ** 2))(state)

    found, clean = gradients(x.at[1, 4:].set(jnp.nan)), gradients(x.at[1, 4:].set(0))
    chex.assert_trees_all_equal(found, clean)
    chex.assert_tree_all_finite(found)


def test_lengths_are_a_mask(key):
    model, x, lengths = nano("lru"), jax.random.normal(key, (3, 7, 1)), jnp.array([7, 4, 0])
    mask = jnp.arange(7)[None] < lengths[:, None]
    chex.assert_trees_all_close(quick.apply(model, x, lengths=lengths), quick.apply(model, x, mask=mask))


@pytest.mark.parametrize("pool", ["mean", "max", "last"])
def test_pooling(key, pool):
    model, x = nano("s5", pool=pool), jax.random.normal(key, (2, 7, 1))
    logits = quick.apply(model, x, lengths=jnp.array([7, 4]))
    np.testing.assert_allclose(quick.apply(model, x[1:, :4])[0], logits[1], atol=1e-4)
    every = nano("s5", pool="none")
    assert quick.apply(every, x).shape == (2, 7, 10)
    if pool == "last":
        np.testing.assert_allclose(quick.apply(every, x)[0, -1], logits[0], atol=1e-4)


def test_tokens(key):
    model = nano("s5", vocab_size=7, norm="layer")
    tokens = jax.random.randint(key, (2, 9), 0, 7)
    logits = quick.apply(model, tokens)
    # The encoder maps one-hot vectors.
    same = nano("s5", in_features=7, norm="layer")
    nnx.update(same, nnx.state(model))
    np.testing.assert_allclose(quick.apply(same, jax.nn.one_hot(tokens, 7)), logits, atol=1e-4)


def test_pairs_of_documents(key):
    model = nano("s5", vocab_size=7, documents=2, norm="layer")
    tokens, lengths = jax.random.randint(key, (3, 2, 9), 0, 7), jnp.array([[9, 5], [1, 9], [9, 9]])
    logits = quick.apply(model, tokens, lengths=lengths)
    assert logits.shape == (3, 10)
    features = np.asarray(quick.apply(model, tokens, lengths=lengths, method="features"))
    swapped = quick.apply(model, tokens[:, ::-1], lengths=lengths[:, ::-1], method="features")
    np.testing.assert_allclose(swapped, features[:, ::-1], atol=1e-5)
    a, b = features[:, 0], features[:, 1]
    hidden = jax.nn.gelu(quick.apply(model.compare, np.concatenate([a, b, a - b, a * b], 1)))
    np.testing.assert_allclose(quick.apply(model.head, hidden), logits, atol=1e-4)


def test_half_the_sampling_rate_gives_nearly_the_same(key):
    """A slow signal, every second sample of it, and steps of twice the length."""
    model = SequenceClassifier(SequenceConfig("s4d", d_model=8, depth=1, d_state=8), rngs=nnx.Rngs(0))
    time = jnp.arange(128)[None, :, None] / 128
    x = jnp.sin(2 * jnp.pi * jnp.array([1.0, 2.0])[:, None, None] * time)
    full, half, wrong = (
        np.asarray(quick.jit(lambda x, rate=rate: model(x, rate=rate))(x[:, ::step]))
        for step, rate in ((1, 1.0), (2, 2.0), (2, 1.0))
    )
    assert np.abs(half - full).max() < 0.25 * np.abs(wrong - full).max()


@pytest.mark.parametrize("options", [{"unroll_layers": True}, {"remat": True}])
def test_ways_to_run_the_layers_agree(key, options):
    x, results = jax.random.normal(key, (2, 9, 1)), []
    for model in (nano("s5"), nano("s5", **options)):
        definition, state = nnx.split(model)

        def run(state, definition=definition):
            model = nnx.merge(definition, state)
            gradient = nnx.grad(lambda model: model(x, train=True).sum())(model)
            return gradient, nnx.state(model, nnx.BatchStat)

        results.append(quick.jit(run)(state))
    (gradient, statistics), (other_gradient, other_statistics) = results
    chex.assert_trees_all_close(gradient, other_gradient, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(statistics, other_statistics, rtol=1e-5, atol=1e-6)


def test_dropout_needs_a_key_and_depends_on_it(key):
    model, x = nano("s5", dropout=0.5), jnp.ones((2, 5, 1))
    with pytest.raises(ValueError, match="train=True with dropout=0.5 needs a random key"):
        model(x, train=True)
    definition, state = nnx.split(model)
    run = quick.jit(lambda state, key: nnx.merge(definition, state)(x, train=True, key=key))
    first, same, other = (run(state, jax.random.key(i)) for i in (0, 0, 1))
    chex.assert_trees_all_equal(first, same)
    assert not np.allclose(first, other)


def test_training_keeps_the_batch_statistics():
    """Through the trainer, whose step is compiled once; and evaluation then uses them."""
    model = ssmjax.create_model("s5_classifier_nano", d_model=8, d_state=4, layer_options=(), bn_momentum=0.5)
    x, y = np.random.default_rng(0).normal(size=(8, 6, 1)).astype(np.float32), np.arange(8, dtype=np.int32) % 2

    def loss(model, batch, key):
        logits = model(batch["x"], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean(), {}

    result = fit(
        model,
        loss,
        lambda step: {"x": x, "y": y},
        steps=20,
        optimizer=optax.adam(1e-2),
        config=FitConfig(progress=False),
    )
    assert np.abs(result.model.layers.norm.mean[...]).max(1).min() > 1e-3
    assert not np.allclose(result.model.layers.norm.var[...], 1)
    assert np.isfinite(quick.apply(result.model, x)).all()
    assert result.train[-1]["loss"] < result.train[0]["loss"]


def test_padding_in_the_manner_of_the_original_s5(key):
    """Only the pooling leaves it out: the layers, in both directions, and the batch norm read it."""
    x, lengths = jax.random.normal(key, (2, 9, 1)), jnp.array([9, 4])
    changed = x.at[1, 4:].set(3.0)
    for padding, alike in (("masked", True), ("pooled", False)):
        model = nano("s5", padding=padding, bidirectional=True)
        one, other = (quick.apply(model, x, lengths=lengths) for x in (x, changed))
        assert np.allclose(one[1], other[1], atol=1e-5) == alike


def test_regressors(key):
    config = SequenceRegressorConfig("s5", d_model=8, depth=1, d_state=4, pool="none", out_features=3)
    model = SequenceRegressor(config, rngs=nnx.Rngs(0))
    assert quick.apply(model, jnp.ones((2, 5, 1))).shape == (2, 5, 3)
    assert abstract("s4d_regressor", out_features=2).head.kernel.shape == (128, 2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(key, dtype):
    x = jax.random.normal(key, (2, 9, 1))
    low, high = (quick.apply(nano("s5", dtype=name), x) for name in (dtype, "float32"))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, atol=0.1 * float(np.abs(high).max()))


def test_a_configuration_survives_json_and_a_saved_model_its_folder(tmp_path):
    config = ssmjax.model_config("s5_classifier_pathx")
    assert type(config)(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(config) == hash(dataclasses.replace(config))
    model = ssmjax.create_model("s5_classifier_nano", d_model=8)
    ssmjax.save_pretrained(model, tmp_path / "model")
    loaded = ssmjax.load_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    chex.assert_trees_all_equal(nnx.state(loaded), nnx.state(model))
    assert ssmjax.load_pretrained(tmp_path / "model", num_classes=3).head.kernel.shape == (8, 3)


def test_layer_options_are_overridden_as_a_dictionary():
    model = abstract("s5_classifier_nano", layer_options={"blocks": 4, "conj_sym": False})
    assert model.config.layer_arguments["blocks"] == 4 and model.layers.layer.Lambda_re.shape == (2, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": "s6"}, "Unknown layer 's6'. Did you mean 's5' or 's4'"),
        (
            {"layer_options": {"block": 2}, "layer": "s5"},
            "Unknown option of the layer 's5' 'block'. Did you mean 'blocks'",
        ),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"documents": 3}, "documents must be 1 or 2, got 3"),
        ({"documents": 2, "pool": "none"}, "pool must be .* with documents=2, got 'none'"),
        ({"layer": "s4nd", "vocab_size": 5}, "vocab_size must be None with layer='s4nd'"),
        ({"layer": "s4nd", "pool": "last"}, "pool must be 'mean' or 'max' with layer='s4nd'"),
        ({"gate": "gluu"}, "gate must be"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"layer_options": "blocks"}, "layer_options must be a dictionary, .* got 'blocks'"),
        ({"layer_options": 5}, "layer_options must be a dictionary, .* got 5"),
        ({"layer_options": [1, 2]}, r"layer_options must be a dictionary, .* got \[1, 2\]"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"layer": "s5", "l_max": 9}, "SequenceConfig: l_max must be None with layer='s5', got 9. Its sequences"),
        ({"layer": "lru", "l_max": 9}, "SequenceConfig: l_max must be None with layer='lru', got 9. Its sequences"),
    ],
)
def test_messages_of_the_configuration(fields, message):
    with pytest.raises(ValueError, match=message):
        SequenceConfig(**fields)


def test_numbers_and_arrays_of_numpy_are_options_of_a_layer():
    config = SequenceConfig("s5", layer_options={"blocks": np.int64(2), "dt_min": np.float32(0.5)})
    assert config.layer_options == (("blocks", 2), ("dt_min", 0.5)) and type(config.layer_options[0][1]) is int
    assert SequenceConfig("s5", layer_options=(pair for pair in [("blocks", 2)])).layer_options == (("blocks", 2),)
    assert SequenceConfig("s4nd", layer_options={"l_max": np.array([4, 4])}).layer_options == (("l_max", (4, 4)),)


X, TOKENS = jnp.ones((2, 5, 1)), jnp.ones((2, 5), jnp.int32)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("fields", "inputs", "options", "message"),
    [
        ({}, X[0], {}, r"inputs must be \(b, l, 1\) of a floating dtype, got \(5, 1\).*The batch is first"),
        ({}, jnp.ones((2, 5, 3)), {}, "for inputs like these, in_features=3"),
        ({}, TOKENS[..., None], {}, "Tokens are integers"),
        ({"vocab_size": 7}, X[..., 0], {}, r"inputs must be \(b, l\) integers"),
        ({}, X, {"mask": jnp.ones((2, 4), bool)}, r"mask must be \(b, l\) = \(2, 5\), got \(2, 4\)"),
        ({}, X, {"lengths": jnp.ones(3, jnp.int32)}, r"lengths must be \(b\) = \(2,\), got \(3,\)"),
        ({}, X, {"lengths": jnp.ones(2, jnp.int32), "mask": jnp.ones((2, 5), bool)}, "one of the two"),
        ({}, X.tolist(), {}, r"inputs must be an array, \(b, l, 1\).* got a list. Make it one: jnp.asarray"),
        ({}, X, {"mask": [[True]]}, "mask must be an array, .* got a list"),
        ({}, X, {"mask": X[..., 0]}, "mask must be of booleans, or of integers, got"),
        ({}, X, {"lengths": [5, 5]}, "lengths must be an array, .* got a list"),
        ({}, X, {"lengths": jnp.ones(2)}, "lengths must be of integers, got"),
        ({}, X, {"lengths": jnp.array([-1, 5])}, r"lengths must be from 0 to 5, .* got \[-1, 5\]"),
        ({}, X, {"lengths": jnp.array([6, 5])}, r"lengths must be from 0 to 5, .* got \[6, 5\]"),
        ({"documents": 2, "vocab_size": 7}, TOKENS, {}, r"inputs must be \(b, 2, ...\), a pair of documents"),
    ],
)
def test_messages_of_a_call(fields, inputs, options, message):
    model = SequenceClassifier(SequenceConfig("lru", d_model=4, depth=1, d_state=2, **fields), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        model(inputs, **options)


@pytest.mark.usefixtures("as_a_user")
def test_a_length_is_a_matter_of_the_configuration():
    """What the errors of a stack recommend works, and what its configuration does not know of is refused."""
    model, x = nano("s4"), jnp.ones((2, 17, 1))
    with pytest.raises(ValueError, match=r"at most 16, .*got 17\. Build it with l_max=17\.\s"):
        jax.eval_shape(model, x)
    assert jax.eval_shape(nano("s4", l_max=17), x).shape == (2, 10)
    with pytest.raises(ValueError, match=r"C must be \(c h n 2\), of one layer.*Build the model with l_max=17"):
        model.layers.layer.kernel.extend(17)
    for layer in ("s4", "s4d", "dss"):
        with pytest.raises(ValueError, match="rate must be a Python number"):
            jax.eval_shape(lambda rate, layer=layer: nano(layer, l_max=17)(x, rate=rate), 1.0)


def test_images_have_no_mask():
    model = nano("s4nd", in_features=1)
    assert quick.apply(model, jnp.ones((2, 5, 4, 1))).shape == (2, 10)
    with pytest.raises(ValueError, match="left out with layer='s4nd'"):
        model(jnp.ones((2, 5, 4, 1)), lengths=jnp.array([5, 5]))
