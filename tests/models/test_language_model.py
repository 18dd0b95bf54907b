"""Language models: exact sizes, prefill and steps against whole sequences, padding, packing, generation, hybrids."""

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch import mamba, mamba_hf
from ssmjax.models.language_model import LanguageModel, LanguageModelConfig
from tests.layers import quick

LAYOUTS = Path(__file__).parents[1] / "golden" / "layouts" / "mamba.json"
TINY = {"vocab_size": 30, "d_model": 16, "depth": 3}
HEADS = {"d_state": 8, "head_dim": 8, "chunk": 4}
CONFIGS = {
    "mamba": LanguageModelConfig(**TINY),
    "falcon": LanguageModelConfig(**TINY, mixer_options={"rms_eps": 1e-6, "use_bias": True}, tie_embeddings=False),
    "mamba2": LanguageModelConfig("mamba2", HEADS | {"dt_limit": (0.2, 0.8)}, **TINY),
    "mamba3": LanguageModelConfig("mamba3", HEADS | {"rank": 2}, **TINY, mlp_width=8),
    "hybrid": LanguageModelConfig(
        "mamba2", HEADS, **TINY, attention_layers=(1,), attention_options={"heads": 2, "d_conv": 3}, norm="layer"
    ),
}


def make(name):
    return quick.lively(lambda: LanguageModel(CONFIGS[name], rngs=nnx.Rngs(0)))


def tokens(b, l, seed=0):
    return np.random.default_rng(seed).integers(0, 30, (b, l)).astype(np.int32)


def count(name):
    return sum(x.size for x in model_arrays(nnx.eval_shape(lambda: ssmjax.create_model(name))).values())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mamba_130m", 129_135_360),
        ("mamba_370m", 371_516_416),
        ("mamba_790m", 793_204_224),
        ("mamba_1_4b", 1_372_178_432),
        ("mamba_2_8b", 2_768_345_600),
        ("mamba2_130m", 128_989_632),
        ("mamba2_2_7b", 2_702_599_680),
        ("falcon_mamba_7b", 7_272_665_088),
    ],
)
def test_published_sizes(name, parameters):
    assert count(name) == parameters


def test_mamba_3_has_its_published_sizes():
    assert round(count("mamba3_187m") / 1e6) == 187
    assert round(count("mamba3_1_5b") / 1e9, 1) == round(count("mamba3_mimo_1_5b") / 1e9, 1) == 1.5


@pytest.mark.parametrize("name", ["mamba_130m", "mamba_130m_hf", "mamba2_130m", "mamba2_130m_hf", "mamba_codestral_7b"])
def test_published_layouts(name):
    """Names and shapes of the published files, of one layer."""
    wanted = json.loads(LAYOUTS.read_text())[name]
    config = dataclasses.replace(ssmjax.model_config(name.removesuffix("_hf")), depth=1)
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    spelled = {"embedding": "embeddings"} if name.endswith(("_hf", "7b")) else {}
    specs = mamba.table(config, **spelled).source_specs(model_arrays(model))
    assert {key: list(spec.shape) for key, spec in specs.items()} == wanted


@pytest.mark.parametrize("name", quick.first(sorted(CONFIGS, key="falcon".__eq__), 4))
def test_prefill_and_steps_equal_the_whole(name):
    model, x = make(name), tokens(2, 11)
    definition, state = nnx.split(model)

    @quick.jit
    def run(state):
        model = nnx.merge(definition, state)
        cache = model.init_cache(2, 11)
        first, cache = model.prefill(x[:, :7], cache, chunk=3)  # in pieces of 1, 3 and 3 tokens

        def step(cache, token):
            logits, cache = model.step(token, cache)
            return cache, logits

        _, steps = jax.lax.scan(step, cache, x[:, 7:].T)
        return model(x), jnp.concatenate([first[None], steps]).swapaxes(0, 1)

    whole, pieces = run(state)
    chex.assert_trees_all_close(pieces, whole[:, 6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [name if name == "hybrid" else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_a_padded_batch_continues_each_prompt_as_if_alone(name):
    """On the left, on the right (where transformers lets it move the state), and with biases (where it leaks)."""
    model, x = make(name), tokens(3, 7)
    mask = np.array([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1] * 7])
    options = dict(max_new_tokens=5, return_logits=True)
    new, logits = ssmjax.generate(model, x, attention_mask=mask, **options)
    for row, real in enumerate(mask.astype(bool)):
        alone, wanted = ssmjax.generate(model, x[row : row + 1, real], **options)
        np.testing.assert_array_equal(new[row], alone[0])
        chex.assert_trees_all_close(logits[row], wanted[0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", quick.first(["hybrid", "mamba"]))
def test_unrolled_layers_generate_the_same(name):
    model, x = make(name), tokens(2, 5)
    unrolled = LanguageModel(dataclasses.replace(CONFIGS[name], unroll_layers=True), rngs=nnx.Rngs(0))
    nnx.update(unrolled, nnx.state(model))
    found, wanted = (ssmjax.generate(m, x, max_new_tokens=4, return_logits=True) for m in (unrolled, model))
    np.testing.assert_array_equal(found[0], wanted[0])
    chex.assert_trees_all_close(found[1], wanted[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "name", [name if name in ("mamba", "hybrid") else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_long_generation_is_the_whole_sequence(name, rows):
    """Of one row and, with matrices that are laid out anew, of several."""
    model, x, count = make(name), tokens(rows, 3), 16
    new, logits = ssmjax.generate(model, x, max_new_tokens=count, return_logits=True)
    whole = quick.apply(model, jnp.concatenate([x, new], axis=1)[:, :-1])
    chex.assert_trees_all_close(logits, whole[:, 2:], atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1), new)


def test_blocks_are_taken_apart_only_where_it_is_free():
    """Views of a stack in a CPU's memory; nothing inside a compiled program, where the model may be an argument."""
    model = make("mamba")
    rows = model.unstacked()["layers"]
    stack = jax.tree.leaves(nnx.state(model.layers))
    size = stack[0].unsafe_buffer_pointer(), stack[0].nbytes // len(rows)
    aligned = [i for i in range(len(rows)) if i * size[1] % 64 == 0]
    found = [jax.tree.leaves(rows[i])[0].unsafe_buffer_pointer() for i in aligned]
    assert found == [size[0] + i * size[1] for i in aligned]
    definition, state = nnx.split(model)
    inside = []
    jax.jit(lambda state: inside.append(nnx.merge(definition, state).unstacked())).lower(state)
    assert inside == [None] and model.decoder(None) is None


@pytest.mark.parametrize("name", quick.first(["mamba", "mamba3", "hybrid", "mamba2"], 3))
def test_packed_sequences(name):
    model, x, ids = make(name), tokens(1, 9), np.array([[3, 3, 3, 3, 5, 5, 5, 5, 5]])
    packed = quick.apply(model, x, segment_ids=ids)
    for i in (3, 5):
        chex.assert_trees_all_close(packed[:, ids[0] == i], quick.apply(model, x[:, ids[0] == i]), atol=1e-5, rtol=1e-5)


def test_hidden_states():
    model, x = make("hybrid"), tokens(2, 5)
    states = quick.apply(model, x, method="hidden_states")
    chex.assert_shape(states, (4, 2, 5, 16))
    chex.assert_trees_all_close(states[-1], quick.apply(model, x, method="features"), atol=1e-6)
    np.testing.assert_array_equal(states[0], model.embedding[...][x])


@pytest.mark.parametrize("name", ["mamba", "falcon", "mamba2"])
def test_transformers_configurations_come_back(name):
    config = CONFIGS[name]
    again = mamba_hf.config_from_hf(mamba_hf.config_to_hf(config))
    assert again.vocab_rows == config.vocab_rows and mamba_hf.config_to_hf(again) == mamba_hf.config_to_hf(config)


def test_an_infinity_that_json_lacks():
    theirs = mamba_hf.config_to_hf(ssmjax.model_config("mamba2_130m"))
    theirs["time_step_limit"] = [0.0, {"__float__": "Infinity"}]
    assert "dt_limit" not in dict(mamba_hf.config_from_hf(theirs).mixer_options)


def test_a_folder_of_transformers_comes_back(tmp_path):
    model = make("mamba2")
    ssmjax.save_pretrained(model, tmp_path / "model", format="hf")
    again = ssmjax.load_pretrained(tmp_path / "model")
    chex.assert_trees_all_equal(model_arrays(again), model_arrays(model))


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    with pytest.raises(ValueError, match=r"attention_layers must be different blocks from 0 to 2, got \(3,\)"):
        LanguageModelConfig(**TINY, attention_layers=(3,))
    with pytest.raises(ValueError, match="tokens must be an integer array of rank 2"):
        make("mamba")(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="transformers has no mamba3 language model"):
        mamba_hf.config_to_hf(CONFIGS["mamba3"])
    with pytest.raises(ValueError, match="config_from_reference: Unknown field 'n_layers'.*Did you mean 'n_layer'"):
        mamba.config_from_reference({"n_layers": 2})
    with pytest.raises(NotImplementedError, match="there is no attention with causal=False"):
        mamba.config_from_reference({"attn_layer_idx": [1], "attn_cfg": {"causal": False}})
