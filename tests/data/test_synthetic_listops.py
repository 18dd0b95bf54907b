"""ListOps: the evaluator against hand-worked expressions, the generator against the evaluator and known statistics."""

import numpy as np
import pytest

from ssmjax.data.synthetic import (
    LISTOPS_VOCABULARY,
    ListOps,
    draw_listops,
    evaluate_listops,
    majority_rule,
    root_operator_rule,
    tokenize_listops,
)

PAD, END, CLOSE = (LISTOPS_VOCABULARY.index(token) for token in ("<pad>", "<eos>", "X"))
SMALL = {"min_length": 4, "max_length": 40, "max_depth": 4, "max_args": 5}


@pytest.fixture(scope="module")
def data() -> ListOps:
    """At the limits of Long Range Arena."""
    return draw_listops(3000, seed=0)


def text(row: np.ndarray) -> str:
    return " ".join(LISTOPS_VOCABULARY[token] for token in row)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[MED 4 2 9 ]", 4),
        ("[MED 1 2 ]", 1),  # 1.5 is cut off
        ("[MED 3 9 8 0 ]", 5),  # so is 5.5
        ("[SM 7 8 9 ]", 4),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM [SM [SM 5 6 ] 9 ] [MED 0 0 9 9 ] ]", 4),
        ("( ( ( ( [MAX 2 ) 9 ) ( ( ( [MIN 4 ) 7 ) ] ) ) ] )", 9),  # as the original files write it
    ],
)
def test_value_of_a_known_expression(expression: str, value: int):
    assert evaluate_listops(tokenize_listops(expression)) == value


def test_the_tokens_are_those_of_the_published_vocabulary():
    assert len(LISTOPS_VOCABULARY) == len(set(LISTOPS_VOCABULARY)) == 18
    assert text(tokenize_listops("( ( ( [SM 1 ) ( ( [MED 2 ) ] ) ) ] )")) == "[SM 1 [MED 2 X X <eos>"
    assert text(tokenize_listops("[FIRST 1 ]")) == "<unk> 1 X <eos>"


@pytest.mark.parametrize("expression", ["", "1 2", "[MIN 1 2", "1 ]", "[MAX ]", "[FIRST 1 ]", "[MIN [MAX ] 1 ]"])
def test_what_is_not_one_expression_has_no_value(expression: str):
    with pytest.raises(ValueError, match="evaluate_listops: tokens"):
        evaluate_listops(tokenize_listops(expression))


def test_labels_lengths_and_padding(data: ListOps):
    assert data.tokens.shape == (3000, 2000)
    assert (data.tokens.dtype, data.lengths.dtype, data.labels.dtype) == (np.uint8, np.int32, np.int32)
    assert data.labels[:600].tolist() == [evaluate_listops(row) for row in data.tokens[:600]]
    assert data.lengths.min() >= 502  # more than 500 tokens and <eos>
    assert data.lengths.max() <= 2000
    position = np.arange(2000)
    np.testing.assert_array_equal(data.tokens == PAD, position >= data.lengths[:, None])
    np.testing.assert_array_equal(data.tokens == END, position == data.lengths[:, None] - 1)


def test_operators_open_as_many_lists_as_are_closed(data: ListOps):
    opened = (data.tokens >= LISTOPS_VOCABULARY.index("[MIN")) & (data.tokens < CLOSE)
    depth = np.cumsum(opened.astype(int) - (data.tokens == CLOSE), axis=1)
    assert depth.min() == 0
    assert depth.max() == 9  # digits at depth 10
    np.testing.assert_array_equal(depth[:, -1], 0)
    shares = np.bincount(data.tokens[opened])[LISTOPS_VOCABULARY.index("[MIN") :] / opened.sum()
    np.testing.assert_allclose(shares, 0.25, atol=0.005)
    digits = data.tokens[(data.tokens > END) & ~opened & (data.tokens != CLOSE)]
    np.testing.assert_allclose(np.bincount(digits - 3) / len(digits), 0.1, atol=0.002)


def test_statistics_are_those_of_the_original_generator(data: ListOps):
    # The original's recursion, written out and run for 18,000 samples: mean 1036 +- 3, median 956, deviation 396.
    assert abs(np.mean(data.lengths - 1) - 1036) < 25
    assert abs(np.std(data.lengths) - 396) < 15
    # 0.174, 0.368 on 18,000 + 2,000 samples.
    assert abs(majority_rule(data[:2000], data[2000:]) - 0.174) < 0.035
    assert abs(root_operator_rule(data[:2000], data[2000:]) - 0.368) < 0.045


def test_samples_are_distinct_and_a_prefix_of_more():
    data = draw_listops(300, seed=5, **SMALL)
    assert len({row.tobytes() for row in data.tokens}) == 300
    fewer = draw_listops(100, seed=5, **SMALL, pad_to=50)
    np.testing.assert_array_equal(fewer.tokens[:, :40], data[:100].tokens)
    np.testing.assert_array_equal(fewer.tokens[:, 40:], PAD)
    np.testing.assert_array_equal(fewer.labels, data.labels[:100])
    assert (draw_listops(100, seed=6, **SMALL).tokens != data[:100].tokens).any()


def test_every_tree_of_a_tiny_grammar_is_found():
    # Depth 2 and two arguments: 4 operators x 100 pairs of digits, 4 tokens each.
    grammar = {"min_length": 3, "max_length": 5, "max_depth": 2, "max_args": 2}
    assert len(draw_listops(400, seed=0, **grammar)) == 400
    with pytest.raises(ValueError, match="count must be at most 400"):
        draw_listops(401, seed=0, **grammar)


def test_rules_on_a_set_worked_by_hand():
    rows = ["[MIN 1 2 ]", "[MIN 1 3 ]", "[MIN 2 3 ]", "[MAX 1 2 ]", "[MAX 2 1 ]"]
    tokens = np.stack([tokenize_listops(row) for row in rows])
    data = ListOps(tokens, np.full(5, 5, np.int32), np.array([1, 1, 2, 2, 2], np.int32))
    assert majority_rule(data, data) == pytest.approx(3 / 5)
    assert root_operator_rule(data, data) == pytest.approx(4 / 5)
    assert root_operator_rule(data[:3], data[3:]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"max_args": 1}, "max_args"),
        ({"max_depth": 0}, "max_depth"),
        ({"min_length": 39}, "min_length"),
        ({"min_length": -1}, "min_length"),
        ({"pad_to": 39}, "pad_to"),
        ({"count": 2.0}, "count"),
        ({"seed": 1.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"min_length": 4.0}, "min_length"),
        ({"max_length": "40"}, "max_length"),
        ({"max_length": 1}, "max_length"),
        ({"max_depth": True}, "max_depth"),
        ({"max_args": float("nan")}, "max_args"),
    ],
)
def test_bad_arguments(as_a_user, arguments: dict, named: str):
    wanted = f"draw_listops: {named} must be an? (positive )?int.* got {arguments[named]!r}"
    with pytest.raises(ValueError, match=wanted):
        draw_listops(**{"count": 1, "seed": 0, **SMALL, **arguments})


def test_numbers_of_numpy_are_sizes(as_a_user):
    limits = {name: np.uint8(limit) for name, limit in SMALL.items()}
    drawn, wanted = draw_listops(np.int64(3), seed=np.int32(0), **limits), draw_listops(3, seed=0, **SMALL)
    np.testing.assert_array_equal(drawn.tokens, wanted.tokens)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokenize_listops(b"1"), "tokenize_listops: text must be a string, got a bytes.*decode"),
        (lambda: evaluate_listops("[MIN 1 ]"), r"tokens must be \(l\) of integers, ids, got a str.*tokenize_listops"),
        (lambda: evaluate_listops(None), "tokens must be .*got a NoneType"),
        (lambda: evaluate_listops([1.5]), "tokens must be .*got a list"),
        (lambda: evaluate_listops(np.ones((2, 2), np.uint8)), r"tokens must be .*got \(2, 2\) uint8.*a row of"),
    ],
)
def test_what_are_no_tokens(as_a_user, call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
