"""Talks with a vision-language model about an image: the answers appear as they are made, and the image is read once.

    python -m experiments.vlm_chat --model FOLDER --image photo.jpg
    python -m experiments.vlm_chat --model FOLDER --image photo.jpg --question "What is this?" --question "What color?"

The folder is of the Hugging Face form (LLaVA-1.5, Qwen2-VL), with its `tokenizer.json`. Without questions they are
asked at the prompt; an empty line ends the conversation. `--smoke` shows the plumbing with a tiny model that knows
nothing.
"""

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

import vlmjax
from experiments.shared import common
from ssmjax import errors
from ssmjax.paths import LocalPaths
from vlmjax.conversation import Conversation, load_tokenizer
from vlmjax.models import for_inference
from vlmjax.processing import Chat

NAME = "vlm_chat"


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    model: Path | None = None
    """A folder of a LLaVA or a Qwen2-VL with its tokenizer."""
    image: tuple[Path, ...] = ()
    """Images, which stand before the first question."""
    question: tuple[str, ...] = ()
    chat: str | None = None
    """A template: vicuna, llava_hf, qwen2_vl or plain; by default that of the model."""
    max_new_tokens: int = 256
    room: int = 4096
    """The tokens that the conversation may take."""
    temperature: float = 0.0
    max_pixels: int = 28 * 28 * 1280
    """The largest area of an image for Qwen2-VL."""
    dtype: str | None = None
    """float32 or bfloat16; by default what suits the device."""
    seed: int = 0
    smoke: bool = False
    """A tiny model without knowledge."""


class Letters:
    """A tokenizer of the nano models for `--smoke`: one token a letter, `*` for a visual token."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> SimpleNamespace:
        """Tokens of letters."""
        return SimpleNamespace(ids=[62 if c == "*" else ord(c) % 62 for c in text])

    def decode(self, ids: list[int]) -> str:
        """Letters of tokens."""
        return "".join(chr(97 + i % 26) for i in ids)

    def token_to_id(self, token: str) -> None:
        """There are no special tokens."""


def main(config: Config = Config()) -> list[str]:
    """Holds the conversation and prints it; returns the answers."""
    missing = [path for path in config.image if not path.is_file()]
    if missing:
        raise errors.bad_argument(NAME, "image", str(missing[0]), "a file; there is none of that name")
    talk = _conversation(config)
    images = [str(path) for path in config.image]
    if config.smoke and not images:
        images = [np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)]
    answers = []
    for question in _questions(config):
        began, first, pieces = time.perf_counter(), 0.0, []
        for piece in talk.ask(question, images=images, max_new_tokens=config.max_new_tokens):
            if not pieces:
                first = time.perf_counter() - began
            pieces.append(piece)
            print(piece, end="", flush=True)
        images = []  # the cache keeps them
        seconds = time.perf_counter() - began
        print(f"\n[first piece after {first:.2f} s, all after {seconds:.2f} s, {talk.used} tokens]")
        answers.append("".join(pieces))
    return answers


def _conversation(config: Config) -> Conversation:
    options = dict(temperature=config.temperature, key=jax.random.key(config.seed), max_pixels=config.max_pixels)
    if config.smoke:
        chat = Chat("", "{images}{text} ", "", " ", "*")
        return Conversation(vlmjax.create_model("qwen2_vl_nano"), Letters(), chat, room=256, **options)
    if config.model is None:
        raise errors.bad_argument(NAME, "model", None, "a folder", "--smoke needs none.")
    tokenizer = load_tokenizer(config.model)
    dtype = config.dtype or common.accelerator_dtype()
    nested = {"vision": {"dtype": dtype}, "text": {"dtype": dtype}}
    model = for_inference(vlmjax.load_pretrained(config.model, **nested), dtype)
    room = min(config.room, model.config.text.max_length)
    return Conversation(model, tokenizer, config.chat, room=room, **options)


def _questions(config: Config) -> Iterator[str]:
    if config.question or config.smoke:
        for question in config.question or ("what is it?", "and why?"):
            print(f"> {question}")
            yield question
        return
    while sys.stdin and (question := input("> ").strip()):
        yield question


if __name__ == "__main__":
    common.run_cli(main, Config)
