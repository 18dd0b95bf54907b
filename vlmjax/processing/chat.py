"""Chat templates, and placeholders for visual tokens: one in the template becomes as many as an image has."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssmjax import errors

__all__ = ["CHATS", "Chat", "expand_placeholders"]

_VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


@dataclasses.dataclass(frozen=True)
class Chat:
    r"""How a conversation becomes one text.

    Attributes:
        system: What stands before the first turn; empty for nothing.
        user: A user's turn, with `{images}` and `{text}`.
        reply: What comes before an answer.
        end: What comes after an answer.
        image: What stands for an image.
        video: What stands for a video.
        stop: The tokens that end an answer, as text.

    >>> CHATS["vicuna"].prompt("What is it?", images=1).endswith("USER: <image>\nWhat is it? ASSISTANT:")
    True
    """

    system: str
    user: str
    reply: str
    end: str
    image: str
    video: str = ""
    stop: tuple[str, ...] = ("</s>",)

    def prompt(self, question: str, *, images: int = 0, videos: int = 0, turns: Sequence[tuple[str, str]] = ()) -> str:
        """The text up to where the answer begins.

        Args:
            question: The last question.
            images: How many images stand before the first question.
            videos: How many videos do.
            turns: The questions and answers before.
        """
        text = self.system
        for asked, answer in turns:
            text += self.turn(asked, images=images, videos=videos) + answer + self.end
            images = videos = 0
        return text + self.turn(question, images=images, videos=videos)

    def turn(self, question: str, *, images: int = 0, videos: int = 0) -> str:
        """One question, up to where its answer begins: what is appended to a conversation whose cache is kept."""
        visual = self.image * images + self.video * videos
        return self.user.format(images=visual, text=question) + self.reply


_QWEN_VISION = "<|vision_start|><|{}_pad|><|vision_end|>"

CHATS = {
    "plain": Chat("", "{images}{text}", "", "\n", "<image>\n"),
    "vicuna": Chat(_VICUNA + " ", "USER: {images}{text} ", "ASSISTANT:", "</s>", "<image>\n"),
    "llava_hf": Chat("", "USER: {images}{text} ", "ASSISTANT:", "</s>", "<image>\n"),
    "qwen2_vl": Chat(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "<|im_start|>user\n{images}{text}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        _QWEN_VISION.format("image"),
        _QWEN_VISION.format("video"),
        ("<|im_end|>", "<|endoftext|>"),
    ),
}
"""The templates: "vicuna" as in the original LLaVA 1.5, "llava_hf" without its system text, "qwen2_vl", and "plain"."""


def expand_placeholders(tokens: Sequence[int], placeholder: int | Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """Repeats each placeholder in a text as often as its image has visual tokens.

    Args:
        tokens: The text's tokens, with one placeholder for each image.
        placeholder: The token that stands for an image; several where videos have one of their own.
        counts: The visual tokens of each image, in the order of the text.

    Returns:
        The longer text, int32.

    Raises:
        ValueError: There are more or fewer placeholders than images.

    >>> expand_placeholders([1, 9, 2], 9, [3]).tolist()
    [1, 9, 9, 9, 2]
    """
    text = np.asarray(tokens, np.int32)
    here = np.isin(text, placeholder)
    if here.sum() != len(counts):
        raise errors.bad_argument(
            "expand_placeholders",
            "tokens",
            f"{int(here.sum())} placeholders ({placeholder})",
            f"a text with a placeholder for each of the {len(counts)} images",
            "Chat templates put one in for each image.",
        )
    repeats = np.ones(len(text), np.int64)
    repeats[here] = counts
    return np.repeat(text, repeats)
