"""Token batches: windows of a stream, each once an epoch, found from (seed, step) alone."""

import numpy as np
import pytest

from ssmjax.data import TokenBatches, eval_token_batches

STREAM = np.arange(100, 123, dtype=np.uint16)  # 7 windows of 3, the last token of which still has a label


def test_an_epoch_holds_every_window_once():
    batches = TokenBatches(STREAM, 2, 3, seed=0)
    assert batches.steps_per_epoch == 3
    starts = [int(row[0]) for step in range(3) for row in batches.at(step)["tokens"]]
    assert len(set(starts)) == 6 and set(starts) <= set(range(100, 121, 3))
    again = [int(row[0]) for step in range(3, 6) for row in batches.at(step)["tokens"]]
    assert again != starts


def test_labels_are_the_tokens_that_follow():
    batch = TokenBatches(STREAM, 7, 3, seed=1).at(0)
    assert batch["tokens"].dtype == batch["labels"].dtype == np.int32
    np.testing.assert_array_equal(batch["labels"], batch["tokens"] + 1)


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = TokenBatches(STREAM, 2, 3, seed=5), TokenBatches(STREAM, 2, 3, seed=5)
    for step in (7, 0, 4):
        np.testing.assert_array_equal(one.at(step)["tokens"], other.at(step)["tokens"])
    different = TokenBatches(STREAM, 2, 3, seed=6)
    assert any((one.at(step)["tokens"] != different.at(step)["tokens"]).any() for step in range(3))


def test_a_memory_map_is_read_by_rows(tmp_path):
    np.save(tmp_path / "tokens.npy", STREAM)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    want = TokenBatches(STREAM, 2, 3, seed=0).at(1)
    np.testing.assert_array_equal(TokenBatches(mapped, 2, 3, seed=0).at(1)["tokens"], want["tokens"])


def test_documents():
    stream = np.array([1, 2, 0, 3, 0, 4, 5, 6, 7])
    batch = TokenBatches(stream, 1, 8, seed=0, end_of_document=0).at(0)
    assert batch["segment_ids"].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert batch["labels"].tolist() == [[2, 0, -100, 0, -100, 5, 6, 7]]


def test_evaluation_asks_for_every_token_once():
    for batch_size in (1, 2, 3):
        batches = list(eval_token_batches(STREAM, batch_size, 4))
        labels = np.concatenate([batch["labels"].ravel() for batch in batches])
        np.testing.assert_array_equal(labels[labels >= 0], STREAM[1:])
        assert {batch["tokens"].shape for batch in batches} == {(batch_size, 4)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((STREAM, 2, 23), "more than length=23 tokens"),
        ((STREAM, 9, 3), "batch_size must be at most the 7 examples"),
        ((STREAM, 2, 0), "length must be a positive int"),
        ((STREAM[None], 2, 3), r"tokens must be \(N\) integers"),
        ((STREAM / 2, 2, 3), r"tokens must be \(N\) integers"),
    ],
)
def test_what_does_not_fit_is_named(as_a_user, arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenBatches(*arguments, seed=0)
