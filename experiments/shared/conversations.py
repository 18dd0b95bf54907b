"""Conversations about pictures in LLaVA's JSON form, as tokens, labels and pictures that a LLaVA reads.

[{"id": ..., "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                 {"from": "gpt", "value": "A cat."}, ...]}, ...]
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from vlmjax.models import Llava
from vlmjax.processing import CHATS, CLIP_MEAN, CLIP_STD, SIGLIP_MEAN, SIGLIP_STD, fit_image, read_image

__all__ = ["Conversations", "load"]

PLACEHOLDER = "<image>"


@dataclasses.dataclass(frozen=True)
class Conversations:
    """Conversations, each about one picture; the pictures are read when a batch is made.

    Attributes:
        tokens: (b l) int32, filled with 0 on the right.
        labels: (b l) int32, -1 where no answer is.
        images: The file of each one's picture.
        size: The side that the tower wants.
        fit: How a picture is brought to it; see `vlmjax.processing.fit_image`.
        mean: The mean of each channel.
        std: The standard deviation of each channel.
    """

    tokens: np.ndarray
    labels: np.ndarray
    images: tuple[Path, ...]
    size: int
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`images`, `tokens` and `labels` of some of them, as `vlmjax.training.llava_answers` reads them."""
        pictures = [
            fit_image(read_image(self.images[i]), self.size, fit=self.fit, mean=self.mean, std=self.std)  # type: ignore[arg-type]
            for i in rows
        ]
        return {"images": np.stack(pictures), "tokens": self.tokens[rows], "labels": self.labels[rows]}


def load(file: Path, images: Path, model: Llava, tokenizer: Any, *, chat: str, fit: str, most: int) -> Conversations:
    """Reads a JSON file.

    Args:
        file: It.
        images: The folder that the names of pictures are in.
        model: Whose image tokens, tower and context count.
        tokenizer: A `tokenizers.Tokenizer`.
        chat: A key of `vlmjax.processing.CHATS`.
        fit: How a picture is brought to the tower's size.
        most: The most tokens of a conversation; what is longer is cut.

    Raises:
        ValueError: It is not of LLaVA's form, or names a picture that is not there; the message has the entry's number.
    """
    try:
        entries = json.loads(file.read_text())
        assert isinstance(entries, list) and entries
    except (OSError, ValueError, AssertionError) as error:
        raise ValueError(
            f"data: {str(file)!r} must be a JSON list of conversations, in LLaVA's form ({error})."
        ) from error
    rows, names = [], []
    for number, entry in enumerate(entries):
        where = f"data: entry {number} of {str(file)!r}"
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or len(turns) < 2 or not isinstance(entry.get("image"), str):
            raise ValueError(f"{where} must have an `image` and a list `conversations`, got {str(entry)[:80]}.")
        names.append(images / entry["image"])
        if not names[-1].is_file():
            raise ValueError(f"{where} names a picture that is not there: {str(names[-1])!r}. Is --images right?")
        tokens, labels = _tokens(turns, model, tokenizer, chat, where)
        if model.config.tokens_per_image >= most:
            wanted = f"more than the {model.config.tokens_per_image} tokens of a picture"
            raise ValueError(f"max_length: must be {wanted}, got {most}.")
        rows.append((tokens[:most], labels[:most]))
    length = max(len(tokens) for tokens, _ in rows)
    padded = [np.full((len(rows), length), fill, np.int32) for fill in (0, -1)]
    for i, parts in enumerate(rows):
        for table, values in zip(padded, parts, strict=True):
            table[i, : len(values)] = values
    vision = model.config.vision
    mean, std = (CLIP_MEAN, CLIP_STD) if vision.class_tokens else (SIGLIP_MEAN, SIGLIP_STD)
    return Conversations(*padded, tuple(names), vision.img_size, fit, tuple(mean), tuple(std))


def _tokens(turns: list[Any], model: Llava, tokenizer: Any, chat: str, where: str) -> tuple[list[int], list[int]]:
    """A conversation's tokens and labels; every question and every answer is tokenized on its own."""
    template, speakers = CHATS[chat], ("human", "gpt")
    start = tokenizer.token_to_id("<s>")
    tokens = [] if start is None else [start]
    tokens += _encoded(tokenizer, template.system)
    labels, seen = [-1] * len(tokens), 0
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("from") != speakers[i % 2] or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"{where}, turn {i} must be from {speakers[i % 2]!r} with a `value`, got {str(turn)[:80]}."
            )
        if i % 2:
            new = _encoded(tokenizer, turn["value"] + template.end)
            tokens, labels = tokens + new, labels + new
            continue
        count = turn["value"].count(PLACEHOLDER)
        seen += count
        question = turn["value"].replace(PLACEHOLDER, "").strip()
        pieces = template.turn(question, images=count).split(PLACEHOLDER)
        for j, piece in enumerate(pieces):
            new = _encoded(tokenizer, piece)
            if j:
                new = [model.config.image_token] * model.config.tokens_per_image + new
            tokens, labels = tokens + new, labels + [-1] * len(new)
    if seen != 1:
        raise ValueError(f"{where} must have one {PLACEHOLDER} in its questions, got {seen}.")
    return tokens, labels


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids if text else []
