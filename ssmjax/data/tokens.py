"""Batches of token sequences, cut from one long stream, as a pure function of (seed, step)."""

from collections.abc import Iterator

import numpy as np

from ssmjax.data.batches import ArrayBatches
from ssmjax.errors import as_int, bad_argument, bad_shape

__all__ = ["TokenBatches", "eval_token_batches"]

IGNORED = -100  # as in ssmjax.training.losses, which this package does not import


class TokenBatches:
    """Training batches of a language model: windows of a token stream, in a new order every epoch.

    The stream is cut into windows of `length` tokens; the rest at its end, and the last partial batch of an epoch, are
    left out. The order of an epoch is that of `ArrayBatches`, so that any step's batch is found without the ones before
    it. The stream may be a memory map: the rows of a batch are all that is read.

    >>> batches = TokenBatches(np.arange(10), 1, 3, seed=0)
    >>> batches.steps_per_epoch
    3
    >>> batch = batches.at(0)
    >>> bool((batch["labels"] == batch["tokens"] + 1).all())
    True
    """

    def __init__(
        self, tokens: np.ndarray, batch_size: int, length: int, *, seed: int, end_of_document: int | None = None
    ):
        """Makes the function; the stream is kept, not copied.

        Args:
            tokens: (N) integers, the documents one after another.
            batch_size: Windows a batch, at most as many as there are.
            length: Tokens a window; N is at least `length + 1`, as the last token of a window needs a label.
            seed: The seed of the order, 0 <= seed < 2 ** 64.
            end_of_document: The token at the end of each document. If it is given, batches have `segment_ids`, and an
                end is not asked for what comes after it.

        Raises:
            ValueError: If one of them is something else.
        """
        self.length = as_int("TokenBatches", "length", length, least=1)
        self._tokens, self._end = _stream("TokenBatches", tokens, self.length), end_of_document
        windows = np.arange((len(tokens) - 1) // self.length)
        self._order = ArrayBatches({"window": windows}, batch_size, seed=seed)
        self.batch_size, self.steps_per_epoch = self._order.batch_size, self._order.steps_per_epoch

    def at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step.

        Args:
            step: 0, 1, ...; epochs follow one another.

        Returns:
            `tokens` (b l) int32; `labels` (b l) int32, the token that follows each; with an `end_of_document` also
            `segment_ids` (b l) int32, and a label of -100 at the end of a document.

        Raises:
            ValueError: If the step is negative.
        """
        return _windows(self._tokens, self._order.at(step)["window"], self.length, self._end)


def eval_token_batches(
    tokens: np.ndarray, batch_size: int, length: int, *, end_of_document: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every token of a stream but the first is a label once, in order, in batches of one shape.

    Args:
        tokens: (N) integers.
        batch_size: Windows a batch.
        length: Tokens a window.
        end_of_document: The token that ends a document, as in `TokenBatches`.

    Returns:
        An iterator of batches as `TokenBatches.at` returns them. Where the stream has ended, tokens are 0 and labels
        -100.

    Raises:
        ValueError: If one of the arguments is something else; at the call, not at the first batch.

    >>> [batch["labels"].tolist() for batch in eval_token_batches(np.arange(6), 2, 2)]
    [[[1, 2], [3, 4]], [[5, -100], [-100, -100]]]
    """
    where = "eval_token_batches"
    length, batch_size = as_int(where, "length", length, least=1), as_int(where, "batch_size", batch_size, least=1)
    stream = _stream(where, tokens, 1)
    count = -(-(len(stream) - 1) // length)
    return (
        _windows(stream, np.arange(start, start + batch_size), length, end_of_document)
        for start in range(0, count, batch_size)
    )


def _windows(tokens: np.ndarray, windows: np.ndarray, length: int, end: int | None) -> dict[str, np.ndarray]:
    places = windows[:, None] * length + np.arange(length + 1)
    real = places < len(tokens)
    rows = np.where(real, tokens[np.minimum(places, len(tokens) - 1)], 0).astype(np.int32)
    inputs = rows[:, :-1]
    labels = np.where(real[:, 1:], rows[:, 1:], IGNORED).astype(np.int32)
    if end is None:
        return {"tokens": inputs, "labels": labels}
    ends = inputs == end
    segments = np.cumsum(ends, axis=1, dtype=np.int32) - ends
    return {"tokens": inputs, "labels": np.where(ends, np.int32(IGNORED), labels), "segment_ids": segments}


def _stream(where: str, tokens: np.ndarray, length: int) -> np.ndarray:
    if np.ndim(tokens) != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise bad_shape(where, "tokens", tokens, "(N) integers", "Concatenate the documents to one stream.")
    if len(tokens) <= length:
        raise bad_argument(where, "tokens", f"{len(tokens)} of them", f"more than length={length} tokens")
    return tokens
