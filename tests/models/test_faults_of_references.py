"""What the reference implementations of Mamba get wrong, each with a test that shows this one free of it.

The numbers are the sizes of the differences in the logits of small random models, of scale 2 to 4, that were measured
with transformers 5.23 and mamba_ssm 2.3.2.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.layers import Mamba2
from ssmjax.layers.selective.gated_norm import GatedRMSNorm
from ssmjax.models.language_model import LanguageModel, LanguageModelConfig
from tests.layers import quick

TINY = {"vocab_size": 30, "d_model": 16, "depth": 2}
HEADS = {"d_state": 8, "head_dim": 8, "chunk": 4}
CONFIGS = {
    "mamba": LanguageModelConfig(**TINY),
    "biased": LanguageModelConfig(**TINY, mixer_options={"use_bias": True}),
    "falcon": LanguageModelConfig(**TINY, mixer_options={"rms_eps": 1e-6}, tie_embeddings=False),
    "mamba2": LanguageModelConfig("mamba2", HEADS, **TINY),
    "limited": LanguageModelConfig("mamba2", HEADS | {"dt_limit": (0.2, 0.8)}, **TINY),
    "mimo": LanguageModelConfig("mamba3", HEADS | {"rank": 2}, **TINY),
}
LEFT, RIGHT = [0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]


def make(name):
    return quick.lively(lambda: LanguageModel(CONFIGS[name], rngs=nnx.Rngs(0)))


def draw(b, l, seed=0):
    return np.random.default_rng(seed).integers(0, 30, (b, l)).astype(np.int32)


def pieces(model, tokens, cuts, masks=None):
    """The logits after each piece of a prompt, the cache carried."""
    definition, state = nnx.split(model)
    masks = [None] * (len(cuts) + 1) if masks is None else [mask.astype(bool) for mask in masks]

    @quick.jit
    def run(state, tokens):
        model, found = nnx.merge(definition, state), []
        cache = model.init_cache(len(tokens), tokens.shape[1])
        for piece, mask in zip(jnp.split(tokens, cuts, axis=1), masks, strict=True):
            logits, cache = model.prefill(piece, cache, mask=mask)
            found.append(logits)
        return jnp.stack(found, axis=1)

    return run(state, tokens)


def stepped(model, tokens):
    """The logits of a whole sequence, and those of single steps."""
    definition, state = nnx.split(model)

    @quick.jit
    def run(state, tokens):
        model = nnx.merge(definition, state)
        cache = model.init_cache(len(tokens), tokens.shape[1])
        step = lambda cache, token: model.step(token, cache)[::-1]  # noqa: E731
        return model(tokens), jax.lax.scan(step, cache, tokens.T)[1].swapaxes(0, 1)

    return run(state, tokens)


@pytest.mark.parametrize("name", quick.first(["mamba", "falcon"]))
def test_row_1_a_prompt_in_two_pieces(name):
    """Of transformers' Mamba and FalconMamba: the state restarts from zero at the second piece (2.9e-3 and 0.19)."""
    model, x = make(name), draw(2, 9)
    chex.assert_trees_all_close(pieces(model, x, [5])[:, -1], pieces(model, x, [])[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", quick.first(["mamba", "mamba2", "falcon"], 2))
def test_row_2_right_padding(name):
    """Of all of transformers': pads move the state (0.51, 0.63, 1.84)."""
    model, x = make(name), draw(1, 7)
    new, logits = ssmjax.generate(model, x, attention_mask=np.array([RIGHT]), max_new_tokens=3, return_logits=True)
    alone, wanted = ssmjax.generate(model, x[:, :4], max_new_tokens=3, return_logits=True)
    np.testing.assert_array_equal(new, alone)
    chex.assert_trees_all_close(logits, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", quick.first(["mamba", "falcon"]))
def test_row_2b_a_mask_that_is_passed_while_decoding(name):
    """Of transformers' Mamba and FalconMamba: left padding, and a mask that is passed on in decoding (0.51, 0.53)."""
    model, x, one = make(name), draw(1, 9), np.ones((1, 1), bool)
    found = pieces(model, x, [7, 8], [np.array([LEFT]), one, one])
    chex.assert_trees_all_close(found, pieces(model, x[:, 3:], [4, 5]), atol=1e-5, rtol=1e-5)


def test_row_3_left_padding_with_biases():
    """Of transformers' Mamba with `use_bias`: left padding leaks through the biases (2e-5 to 4e-5)."""
    model, x = make("biased"), draw(1, 7)
    found = pieces(model, x, [], [np.array([LEFT])])
    chex.assert_trees_all_close(found, pieces(model, x[:, 3:], []), atol=5e-6, rtol=1e-6)


def test_row_4_limits_of_the_step_size_in_a_step():
    """Of transformers' Mamba-2: `time_step_limit` is not applied in a single step (7.6e-3 to 0.02)."""
    whole, steps = stepped(make("limited"), draw(2, 6))
    chex.assert_trees_all_close(steps, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"dt_limit": (0.3, 0.6)}, {"D_per_channel": True}, {"groups": 2, "norm": False}], ids=str
)
def test_row_5_every_option_in_a_step(options):
    """Of mamba_ssm's Mamba-2: no limits, no D per channel, and without Triton one group only."""
    layer = quick.lively(lambda: Mamba2(8, d_state=4, head_dim=4, **options, rngs=nnx.Rngs(0)))
    definition, state = nnx.split(layer)
    u = jax.random.normal(jax.random.key(0), (2, 5, 8))

    @quick.jit
    def run(state, u):
        layer = nnx.merge(definition, state)
        step = lambda state, u: layer.step(u, state)[::-1]  # noqa: E731
        return layer(u), jax.lax.scan(step, layer.init_state(2), u.swapaxes(0, 1))[1].swapaxes(0, 1)

    whole, steps = run(state, u)
    chex.assert_trees_all_close(steps, whole, atol=1e-5)


def test_row_6_the_norm_is_over_each_group():
    """Of mamba_ssm's reference of its fused path: the norm is over all channels whatever the groups (0.20)."""
    layer = Mamba2(8, d_state=4, head_dim=4, groups=2, rngs=nnx.Rngs(0))
    y, z = jax.random.normal(jax.random.key(0), (2, 1, 3, 16))
    gated = np.asarray(y * jax.nn.silu(z), np.float64)
    halves = np.split(gated, 2, axis=-1)
    wanted = np.concatenate([half / np.sqrt((half**2).mean(-1, keepdims=True) + 1e-5) for half in halves], axis=-1)
    chex.assert_trees_all_close(layer.norm(y, z), wanted.astype(np.float32), atol=1e-5)
    whole = GatedRMSNorm(16)(y, z)
    assert np.abs(np.asarray(whole) - wanted).max() > 0.05


def test_row_7_min_p_is_relative_to_the_most_likely_token():
    """Of mamba_ssm: the threshold is from the logit of token 0, for a batch of one."""
    logits = jnp.log(jnp.array([[0.001, 0.6, 0.399], [0.5, 0.3, 0.2]]))
    draws = jax.vmap(lambda key: ssmjax.generation.sample(logits, key, temperature=1.0, min_p=0.65))(
        jax.random.split(jax.random.key(0), 50)
    )
    assert set(np.unique(draws[:, 0])) == {1, 2} and set(np.unique(draws[:, 1])) == {0}


def test_row_8_the_state_of_decoding_is_float32_under_bfloat16():
    """Of mamba_ssm: it has the dtype of the weights, and drifts."""
    model = ssmjax.create_model("mamba_nano", dtype="bfloat16", depth=1)
    cache = model.init_cache(1, 8)
    assert cache["layers"].ssm.dtype == jnp.float32
    logits, cache = quick.apply(model, jnp.zeros((1,), int), cache, method="step")
    assert (logits.dtype, cache["layers"].ssm.dtype) == (jnp.float32, jnp.float32)


def test_mamba_3_of_several_ranks_from_a_prompt_of_one_token():
    """Of mamba_ssm: generation with a MIMO model fails from such a prompt."""
    model, x = make("mimo"), draw(2, 1)
    new, logits = ssmjax.generate(model, x, max_new_tokens=4, return_logits=True)
    whole = quick.apply(model, np.concatenate([x, new[:, :-1]], axis=1))
    chex.assert_trees_all_close(logits, whole, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(new, whole.argmax(-1))


def test_mamba_2_with_right_padding_between_its_limits():
    """Of transformers (issue 48256): right padding moves the state; here with a least step size, which would, too."""
    model, x = make("limited"), draw(2, 7)
    mask = np.array([RIGHT, [1] * 7])
    found = pieces(model, np.concatenate([x, x[:, :1]], axis=1), [7], [mask, np.ones((2, 1), bool)])[:, -1]
    for row, real in enumerate(mask.astype(bool)):
        alone = np.concatenate([x[row, real], x[row, :1]])[None]
        wanted = pieces(model, alone, [])[0, -1]
        chex.assert_trees_all_close(found[row], wanted, atol=1e-5, rtol=1e-5)
