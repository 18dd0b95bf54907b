"""Generation: the loop against steps by hand, padding, stop tokens, the filters of draws, and the streaming form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssmjax
import vlmjax
from ssmjax.generation import sample, stream
from tests.layers import quick

PROMPTS = np.array([[5, 9, 2, 7], [3, 3, 8, 1]])


@pytest.fixture(scope="module")
def model():
    return vlmjax.create_model("llama_nano", depth=2, d_model=32, heads=2, d_mlp=64, vocab=16, max_length=32, seed=3)


def test_greedy_is_the_argmax_of_the_whole(model):
    new, logits = ssmjax.generate(model, PROMPTS, max_new_tokens=5, return_logits=True)
    whole = quick.apply(model, np.concatenate([PROMPTS, new[:, :-1]], axis=1))  # without a cache
    np.testing.assert_array_equal(whole[:, 3:].argmax(-1), new)
    np.testing.assert_array_equal(logits.argmax(-1), new)


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_a_padded_batch_is_each_prompt_alone(model, side):
    places = {"left": [0, 1], "right": [2, 3], "middle": [1, 2]}[side]
    mask = np.ones((2, 4), int)
    mask[0, places] = 0
    tokens = np.where(mask, PROMPTS, 10**6)  # garbage at padding
    new, logits = ssmjax.generate(model, tokens, max_new_tokens=4, attention_mask=mask, return_logits=True)
    for row in range(2):
        alone = ssmjax.generate(model, PROMPTS[row : row + 1, mask[row] == 1], max_new_tokens=4, return_logits=True)
        assert new[row].tolist() == alone[0][0].tolist()
        np.testing.assert_allclose(logits[row], alone[1][0], atol=1e-5)


def test_a_row_ends_at_a_stop_token(model):
    free = np.asarray(ssmjax.generate(model, PROMPTS, max_new_tokens=6))
    stop = int(free[0, 2])
    new = np.asarray(ssmjax.generate(model, PROMPTS, max_new_tokens=6, eos_id=[stop, 10**4], pad_id=15))
    end = free[0].tolist().index(stop)
    assert new[0].tolist() == [*free[0, : end + 1], *[15] * (5 - end)]
    streamed = np.stack(list(stream(model, PROMPTS, max_new_tokens=6, eos_id=[stop], pad_id=15)), axis=1)
    np.testing.assert_array_equal(streamed, new[:, : streamed.shape[1]])


def test_the_stream_is_what_generate_gives(model, key):
    options = dict(max_new_tokens=5, temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.3, key=key)
    new = ssmjax.generate(model, PROMPTS, **options)
    np.testing.assert_array_equal(np.stack(list(stream(model, PROMPTS, **options)), axis=1), new)


def test_draws_follow_the_filtered_distribution(key):
    probabilities = np.array([0.4, 0.3, 0.2, 0.1])
    logits = jnp.broadcast_to(jnp.log(probabilities)[None], (20000, 4))
    keys = iter(jax.random.split(key, 7))
    for options, kept in (
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.65}, [0, 1]),
        ({"top_p": 0.71}, [0, 1, 2]),
        ({"min_p": 0.4}, [0, 1, 2]),
        ({"top_k": 3, "min_p": 0.7}, [0, 1]),
    ):
        drawn = np.bincount(sample(logits, next(keys), temperature=1.0, **options), minlength=4) / 20000
        wanted = np.where(np.isin(np.arange(4), kept), probabilities, 0)
        np.testing.assert_allclose(drawn, wanted / wanted.sum(), atol=0.015)
    cold = np.bincount(sample(logits, next(keys), temperature=0.5), minlength=4) / 20000
    np.testing.assert_allclose(cold, probabilities**2 / (probabilities**2).sum(), atol=0.015)


def test_a_penalty_for_repetition(model):
    prompt = np.array([[4, 4, 4]])
    logits = np.asarray(quick.apply(model, prompt)[0, -1])
    penalized = logits.copy()
    penalized[4] = logits[4] / 50 if logits[4] > 0 else logits[4] * 50
    new = ssmjax.generate(model, prompt, max_new_tokens=1, repetition_penalty=50.0)
    assert int(new[0, 0]) == int(penalized.argmax())
    many = np.asarray(ssmjax.generate(model, prompt, max_new_tokens=8, repetition_penalty=1e6))[0]
    positive = [int(token) for token in many]
    assert len(set(positive)) == len(positive)


def test_another_temperature_compiles_nothing(model, key):
    from ssmjax import generation

    options = dict(max_new_tokens=2, top_p=0.9, key=key)
    ssmjax.generate(model, PROMPTS, temperature=0.5, **options)
    before = generation._loop._cache_size()
    ssmjax.generate(model, PROMPTS, temperature=1.5, **{**options, "top_p": 0.4})
    assert generation._loop._cache_size() == before


def test_a_cache_carries_a_conversation(model):
    longer = np.concatenate([PROMPTS, [[1], [2]]], axis=1)

    def run(model, tokens):
        _, cache = model.prefill(tokens[:, :2], model.init_cache(2, 8))
        prefilled, cache = model.prefill(tokens[:, 2:4], cache)
        return jnp.stack([prefilled, model.step(tokens[:, 4], cache)[0]], axis=1), model(tokens)

    logits, whole = quick.run(run, model, jnp.asarray(longer))
    chex.assert_trees_all_close(logits, whole[:, 3:], atol=1e-5)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive int"),
        ({"max_new_tokens": 100}, "length must be at most max_length = 32, got 104"),
        ({"temperature": 1.0}, "key must be a random key"),
        ({"top_k": 3}, "temperature must be above 0 with top_k"),
        ({"temperature": -1.0}, "temperature must be a finite number"),
        ({"top_p": 1.5, "temperature": 1.0, "key": jax.random.key(0)}, "top_p must be a probability"),
        ({"tokens": np.ones((2, 4))}, "tokens must be an integer array"),
        ({"attention_mask": np.ones((2, 3))}, "attention_mask must be of the shape of tokens"),
        ({"attention_mask": np.zeros((2, 4))}, "at least one token a row"),
        ({"model": jnp.ones(3)}, "model must be a language model"),
    ],
)
def test_errors(model, change, message):
    arguments = {"model": model, "tokens": PROMPTS, "max_new_tokens": 2} | change
    with pytest.raises(ValueError, match=message):
        ssmjax.generate(**arguments)
