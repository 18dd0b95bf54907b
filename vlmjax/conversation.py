"""Questions and answers about images: the cache is kept from turn to turn, so that an image is read once."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.generation import sample
from ssmjax.paths import local_path
from ssmjax.shapes import PRNGKey
from vlmjax.models import LlavaConfig, Qwen2VLConfig, SiglipVisionConfig
from vlmjax.processing import (
    CHATS,
    CLIP_MEAN,
    CLIP_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    Chat,
    bucket_length,
    expand_placeholders,
    fit_image,
    image_patches,
    pack_patches,
    read_image,
)

__all__ = ["Conversation", "Tokenizer", "load_tokenizer"]


class Tokenizer(Protocol):
    """What a conversation needs of a tokenizer; `tokenizers.Tokenizer` of Hugging Face has it."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Any:
        """The tokens of a text, in the attribute `ids` of what is returned."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens."""

    def token_to_id(self, token: str) -> int | None:
        """The number of a token."""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads the `tokenizer.json` of a folder of the Hugging Face form.

    Args:
        folder: The folder.

    Raises:
        ValueError: There is none.

    >>> load_tokenizer("no/folder")
    Traceback (most recent call last):
    ValueError: load_tokenizer: folder must be one with a tokenizer.json, got 'no/folder'.
    """
    path = local_path("load_tokenizer", "folder", folder) / "tokenizer.json"
    if not path.is_file():
        raise errors.bad_argument("load_tokenizer", "folder", str(folder), "one with a tokenizer.json")
    from tokenizers import Tokenizer as FromFile

    return FromFile.from_file(str(path))


class Conversation:
    """A conversation about images with a `Llava` or a `Qwen2VL`.

    Every prompt is padded to one of a few lengths, so that few programs are compiled.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        chat: A name of `vlmjax.processing.CHATS`, or a `Chat`; None takes that of the model.
        room: The tokens that the whole conversation may take, padding included; None means 2048, or what the model has.
        temperature: 0 is greedy.
        key: A random key, if there is a temperature.
        max_pixels: The largest area of an image for Qwen2-VL.
        fit: How an image becomes a square for LLaVA: "pad", "crop" or "stretch".

    >>> import numpy as np, vlmjax
    >>> class Letters:
    ...     def encode(self, text, *, add_special_tokens=True):
    ...         return type("Encoding", (), {"ids": [ord(c) % 62 if c != "*" else 62 for c in text]})
    ...     def decode(self, ids):
    ...         return "".join(chr(97 + i % 26) for i in ids)
    ...     def token_to_id(self, token):
    ...         return None
    >>> chat = Chat("", "{images}{text}", "", "", "*")
    >>> talk = Conversation(vlmjax.create_model("qwen2_vl_nano"), Letters(), chat, room=256)
    >>> len("".join(talk.ask("what?", images=[np.zeros((56, 56, 3), np.uint8)], max_new_tokens=3)))
    3
    """

    def __init__(
        self,
        model: nnx.Module,
        tokenizer: Tokenizer,
        chat: str | Chat | None = None,
        *,
        room: int | None = None,
        temperature: float = 0.0,
        key: PRNGKey | None = None,
        max_pixels: int = 28 * 28 * 1280,
        fit: str = "pad",
    ):
        if type(model.config) not in (LlavaConfig, Qwen2VLConfig):  # their kinds with tiles take other inputs
            wanted = "a Llava or a Qwen2VL"
            raise errors.bad_argument("Conversation", "model", type(model).__name__, wanted)
        if chat is None:
            chat = "qwen2_vl" if isinstance(model.config, Qwen2VLConfig) else "vicuna"
        if isinstance(chat, str):
            errors.require_known("chat", chat, CHATS)
            chat = CHATS[chat]
        temperature = errors.as_nonnegative("Conversation", "temperature", temperature)
        if temperature and key is None:
            raise errors.bad_argument("Conversation", "key", None, "a random key where there is a temperature")
        most = model.config.text.max_length
        room = min(2048, most) if room is None else errors.as_int("Conversation", "room", room, least=1)
        if room > most:
            wanted = f"at most the model's max_length = {most}"
            raise errors.bad_argument("Conversation", "room", room, wanted)
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.room, self.temperature, self.key = room, temperature, key
        self._options = {"max_pixels": max_pixels, "fit": fit}
        self._split = nnx.split(model)
        self._stop = {i for i in map(tokenizer.token_to_id, chat.stop) if i is not None}
        self._cache: Any = None
        self._used = 0
        self._pending: list[int] = []

    @property
    def used(self) -> int:
        """How many of the tokens that there is room for are taken."""
        return self._used

    def ask(self, question: str, *, images: Sequence[Any] = (), max_new_tokens: int = 256) -> Iterator[str]:
        """Asks a question and yields the answer in pieces, as it is made.

        Args:
            question: The question.
            images: What `read_image` reads: files, bytes, Pillow images or arrays. They stand before the question.
            max_new_tokens: How long the answer may be.

        Raises:
            ValueError: An image cannot be read, or there is no room left.
        """
        max_new_tokens = errors.as_int("Conversation.ask", "max_new_tokens", max_new_tokens, least=1)
        if isinstance(images, str | bytes | Path):
            raise errors.bad_argument("Conversation.ask", "images", str(images)[:80], "a list, of one image too")
        inputs, counts = self._inputs(images)
        started = self._cache is not None
        turn = self.chat.turn(question, images=len(images))
        text = self.chat.end + turn if started else self.chat.system + turn
        ids = list(self.tokenizer.encode(text, add_special_tokens=not started).ids)
        config = self.model.config
        tokens = np.concatenate([self._pending, expand_placeholders(ids, config.image_token, counts)]).astype(np.int32)
        padded = bucket_length(len(tokens), least=32)
        if self._used + padded + max_new_tokens > self.room:
            got = f"{self._used} + {padded} + {max_new_tokens} tokens (so far, this question, an answer)"
            remedy = "Begin another conversation, or give more room."
            raise errors.bad_argument("Conversation", "room", got, f"at most {self.room}", remedy)
        if isinstance(config, Qwen2VLConfig) and images:  # the language model's program does not see the image's size
            inputs = {"visual": self.model.encode(inputs["images"], room=padded)}
        mask = np.arange(padded)[None] >= padded - len(tokens)
        row = np.pad(tokens, (padded - len(tokens), 0))[None]
        if started:
            logits, self._cache = _read(*self._split, row, mask, self._cache, inputs)
        else:
            logits, self._cache = _begin(*self._split, row, mask, inputs, room=self.room)
        self._used += padded
        return self._answer(logits, max_new_tokens)

    def _answer(self, logits: jax.Array, count: int) -> Iterator[str]:
        """Chooses tokens one by one; the cache does not hold the last one, which the next question brings along."""
        ids: list[int] = []
        said = ""
        for i in range(count):
            token = int(_choose(logits, self.key, self._used, self.temperature)[0])
            self._pending = [] if token in self._stop else [token]
            if token in self._stop:
                break
            ids.append(token)
            text = self.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # half of a character
                yield text[len(said) :]
                said = text
            if i + 1 < count:
                logits, self._cache = _step(*self._split, np.array([token], np.int32), self._cache)
                self._used += 1
                self._pending = []

    def _inputs(self, images: Sequence[Any]) -> tuple[dict[str, Any], list[int]]:
        """What the model reads of images, and the visual tokens of each."""
        if not images:
            return {}, []
        config, pictures = self.model.config, [read_image(image) for image in images]
        if isinstance(config, Qwen2VLConfig):
            sizes = dict(patch_size=config.vision.patch_size, merge=config.vision.merge, frames=config.vision.frames)
            patches = [image_patches(picture, max_pixels=self._options["max_pixels"], **sizes) for picture in pictures]
            counts = [len(each) // config.vision.merge**2 for each, _ in patches]
            return {"images": pack_patches(patches, merge=config.vision.merge)}, counts
        siglip = isinstance(config.vision, SiglipVisionConfig)
        colors = (SIGLIP_MEAN, SIGLIP_STD) if siglip else (CLIP_MEAN, CLIP_STD)
        fit = dict(fit=self._options["fit"], mean=colors[0], std=colors[1])
        squares = [fit_image(picture, config.vision.img_size, **fit) for picture in pictures]
        return {"images": jnp.asarray(np.stack(squares))}, [config.tokens_per_image] * len(images)


@functools.partial(jax.jit, static_argnames=("definition", "room"))
def _begin(definition, state, tokens, mask, inputs, *, room):
    model = nnx.merge(definition, state)
    return model.prefill(tokens, model.init_cache(1, room), mask=mask, **inputs)


@functools.partial(jax.jit, static_argnames="definition", donate_argnames="cache")
def _read(definition, state, tokens, mask, cache, inputs):
    return nnx.merge(definition, state).prefill(tokens, cache, mask=mask, **inputs)


@functools.partial(jax.jit, static_argnames="definition", donate_argnames="cache")
def _step(definition, state, token, cache):
    return nnx.merge(definition, state).step(token, cache)


def _choose(logits, key, number, temperature):
    if not temperature:
        return sample(logits)
    return sample(logits, jax.random.fold_in(key, number), temperature=temperature)
