"""What a user gets wrong is one clear error each, before any work: placeholders, tokens, budgets, images, rooms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
import vlmjax
from tests.layers import quick
from vlmjax.conversation import Conversation
from vlmjax.layers import Merger
from vlmjax.ops import density_anchors
from vlmjax.processing import smart_resize

IMAGE = 63
IMAGES = jnp.zeros((1, 8, 8, 3))


@pytest.fixture(scope="module")
def model():
    return vlmjax.create_model("llava_nano", vision={"depth": 1, "img_size": 8}, text={"depth": 1}, layers=(-1,))


def text(count):
    return np.array([[*[IMAGE] * count, 1, 2]])


@jax.jit
def two(x):
    return density_anchors(x, 2)


def many(x):
    return density_anchors(x, 9)


CALLS = {
    "too few placeholders": (lambda m: m(text(3), images=IMAGES), "with 4 image tokens, got '3 image tokens"),
    "none": (lambda m: m(text(0), images=IMAGES), "with 4 image tokens, got '0 image tokens"),
    "no image": (lambda m: m(text(4)), "with 0 image tokens, got '4 image tokens"),
    "unmerged placeholders": (lambda m: m(text(4), images=IMAGES, merge=two), "with 2 image tokens, got '4"),
    "another size": (lambda m: m(text(4), images=jnp.zeros((1, 12, 12, 3))), "with 9 .*Each image takes 9 of them"),
    "a budget beyond": (lambda m: m(text(9), images=IMAGES, merge=many), "from 1 to the 4 tokens, got 9"),
    "one image": (lambda m: m(text(4), images=IMAGES[0]), r"images\[None\]"),
    "channels first": (lambda m: m(text(4), images=jnp.zeros((1, 3, 8, 8))), "Channels first"),
    "bytes": (lambda m: m(text(4), images=np.zeros((1, 8, 8, 3), np.uint8)), "Normalize first"),
    "beyond the context": (lambda m: m(np.ones((1, 257), int)), "at most max_length = 256"),
    "beyond the vocabulary": (lambda m: m(np.array([[1, 64]])), "from 0 to 63, got 64"),
    "LLaVA's own sentinel": (lambda m: m(np.array([[-200, 1]])), "from 0 to 63, got -200"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_cannot_work(model, call, monkeypatch):
    monkeypatch.setattr(type(model.language), "decode", None)  # no work before the error
    run, message = CALLS[call]
    with pytest.raises(ValueError, match=message):
        run(model)


GENERATED = ["too few placeholders", "unmerged placeholders", "beyond the vocabulary"]


@pytest.mark.parametrize("call", GENERATED)
def test_generation_looks_first(model, call):
    class Asked:
        config = model.config

        def __call__(self, tokens, **inputs):
            return ssmjax.generate(model, tokens, max_new_tokens=2, **inputs)

    run, message = CALLS[call]
    with pytest.raises(ValueError, match=message):
        run(Asked())
    with pytest.raises(ValueError, match="at most max_length = 256, got 306"):
        ssmjax.generate(model, text(4), max_new_tokens=300, images=IMAGES)


def test_garbage_at_padding_is_no_error(model):
    tokens, mask = np.array([[-200, 99, 1, 2]]), np.array([[False, False, True, True]])
    found = model(tokens, mask=mask)[:, 2:]
    np.testing.assert_allclose(found, model(tokens[:, 2:]), atol=1e-5)


def test_generation_takes_a_merge(model):
    new, logits = ssmjax.generate(model, text(2), max_new_tokens=2, images=IMAGES + 0.5, merge=two, return_logits=True)
    tokens = np.concatenate([text(2), new[:, :1]], axis=1)
    whole = quick.run(lambda model, images: model(tokens, images=images, merge=two), model, IMAGES + 0.5)
    np.testing.assert_allclose(logits[0], whole[0, -2:], atol=1e-5)


def test_a_merger_of_another_width():
    with pytest.raises(ValueError, match=r"x must be \(b n 8\)"):
        Merger(8, rngs=nnx.Rngs(0))(jnp.ones((1, 12, 9)), 3)


def test_training_a_merger(model):
    batch = {"images": IMAGES, "tokens": text(4), "labels": text(4)}
    for budgets, steps, data, message in [
        ((5,), 1, [batch], r"budgets must be from 1 to the 4 tokens of an image, got \[5\]"),
        ((0,), 1, [batch], "budgets must be a positive int"),
        ((2,), 0, [batch], "steps must be a positive int"),
        ((2,), 1, [], "one batch or more"),
        ((2,), 1, [{"images": IMAGES}], "a batch without tokens, labels"),
        ((2,), 1, [batch | {"tokens": text(3), "labels": text(3)}], "with 4 image tokens, got '3"),
        ((2,), 1, [batch | {"labels": text(3)}], "labels must be of tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            vlmjax.train_merger(model, data, budgets=budgets, steps=steps)


def test_sizes_of_images():
    with pytest.raises(ValueError, match="at least 1 each"):
        smart_resize(0, 10)
    for bounds in ((10**6, 10**5), (3136, 0), (0, 10)):
        with pytest.raises(ValueError, match="min_pixels, max_pixels"):
            smart_resize(100, 100, min_pixels=bounds[0], max_pixels=bounds[1])


def test_conversations(model):
    class Letters:
        def token_to_id(self, token):
            return None

    with pytest.raises(ValueError, match="Did you mean 'vicuna'"):
        Conversation(model, Letters(), "vicunna", room=64)
    with pytest.raises(ValueError, match="room must be at most the model's max_length = 256"):
        Conversation(model, Letters(), room=1000)
    talk = Conversation(model, Letters(), "plain", room=64)
    with pytest.raises(ValueError, match="max_new_tokens must be a positive int"):
        talk.ask("what?", max_new_tokens=0)
    with pytest.raises(ValueError, match="images must be a list"):
        talk.ask("what?", images="photo.jpg")
