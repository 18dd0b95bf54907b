"""A conversation with a kept cache is the same text read at once; images are read once; room is checked."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import vlmjax
from experiments import vlm_chat
from tests.layers import quick
from vlmjax import conversation
from vlmjax.conversation import Conversation
from vlmjax.processing import Chat

IMAGE = 30
CHAT = Chat("s", "{images}{text}", ":", ".", "*", stop=("!",))
TEXT = {"vocab": 32, "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 32, "max_length": 512}


class Letters:
    """Tokens 0 to 25 for letters and others, 29 for the stop, 30 for an image."""

    def encode(self, text, *, add_special_tokens=True):
        return SimpleNamespace(ids=[IMAGE if c == "*" else ord(c) % 26 for c in text])

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)

    def token_to_id(self, token):
        return 29 if token == "!" else None


@pytest.fixture(scope="module", params=["qwen2_vl_nano", "llava_nano"])
def model(request):
    if request.param == "llava_nano":
        vision = dict(img_size=8, patch_size=4, d_model=16, depth=1, heads=2, d_mlp=16)
        return vlmjax.create_model("llava_nano", vision=vision, text=TEXT, image_token=IMAGE)
    vision = dict(d_model=16, d_out=16, depth=1, heads=2, d_mlp=32)
    text = TEXT | {"kv_heads": 1, "rope_sections": (2, 1, 1)}
    return vlmjax.create_model("qwen2_vl_nano", vision=vision, text=text, image_token=IMAGE, video_token=31)


def picture(rows=56, columns=56):
    return np.random.default_rng(1).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def test_two_questions_are_one_text(model):
    talk = Conversation(model, Letters(), CHAT, room=256)
    first = "".join(talk.ask("what", images=[picture()], max_new_tokens=4))
    second = "".join(talk.ask("why", max_new_tokens=4))
    assert len(first) == len(second) == 4  # the four visual tokens of either model stand for the image
    whole = "s****what:" + first + ".why:"
    tokens = [IMAGE if c == "*" else ord(c) % 26 for c in whole]
    tokens[len("s****what:") : len("s****what:") + 4] = [ord(c) - 97 for c in first]
    inputs, _ = talk._inputs([picture()])
    answer = [ord(letter) - 97 for letter in second]
    logits = quick.apply(model, jnp.asarray([tokens + answer[:-1]]), **inputs)[0]
    assert logits[len(tokens) - 1 :].argmax(-1).tolist() == answer


def test_images_of_another_size_compile_no_language_model():
    small = {"d_model": 16, "d_out": 16, "depth": 1, "heads": 2, "d_mlp": 32}
    text = TEXT | {"kv_heads": 1, "rope_sections": (2, 1, 1)}
    model = vlmjax.create_model("qwen2_vl_nano", vision=small, text=text, image_token=IMAGE, video_token=31)
    before = conversation._begin._cache_size()
    for size in ((56, 56), (84, 112), (112, 140)):
        talk = Conversation(model, Letters(), CHAT, room=128)
        list(talk.ask("what", images=[picture(*size)], max_new_tokens=1))
    assert conversation._begin._cache_size() == before + 1


def test_mistakes_are_one_error_each(model, tmp_path):
    talk = Conversation(model, Letters(), CHAT, room=64)
    with pytest.raises(ValueError, match="room must be at most 64"):
        talk.ask("what", max_new_tokens=60)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        talk.ask("what", images=[tmp_path / "broken.jpg"])
    with pytest.raises(ValueError, match="a placeholder for each of the 1 images"):
        Conversation(model, Letters(), Chat("", "{text}", "", "", "*")).ask("what", images=[picture()])
    with pytest.raises(ValueError, match="Unknown chat 'vicun'"):
        Conversation(model, Letters(), "vicun")
    with pytest.raises(ValueError, match="a random key"):
        Conversation(model, Letters(), CHAT, temperature=1.0)


@pytest.mark.slow
def test_the_command(capsys):
    answers = vlm_chat.main(vlm_chat.Config(smoke=True, max_new_tokens=3))
    assert [len(answer) for answer in answers] == [3, 3]
    assert "first piece after" in capsys.readouterr().out
    with pytest.raises(ValueError, match="model must be a folder"):
        vlm_chat.main(vlm_chat.Config())
