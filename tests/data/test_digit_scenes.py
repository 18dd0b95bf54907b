"""DigitScenes: what is drawn is what is told, and the answers are those of the pictures."""

import numpy as np
import pytest

from ssmjax.data.synthetic import draw_digit_scenes, scene_questions


@pytest.fixture(scope="module")
def scenes():
    return draw_digit_scenes(40, seed=3)


def test_the_same_seed_draws_the_same(scenes):
    again = draw_digit_scenes(40, seed=3)
    assert np.array_equal(scenes.images, again.images)
    assert not np.array_equal(scenes.images, draw_digit_scenes(40, seed=3, split="test").images)


def test_digits_stand_apart_and_inside(scenes):
    assert set((scenes.digit >= 0).sum(1)) <= {3, 4, 5}
    for digit, place in zip(scenes.digit, scenes.place, strict=True):
        corners = place[digit >= 0]
        assert corners.min() >= 0
        assert corners.max() <= 40
        distance = np.abs(corners[:, None] - corners[None]).max(-1)
        assert distance[~np.eye(len(corners), dtype=bool)].min() >= 9


def test_labels_and_captions_name_what_is_there(scenes):
    for digit, labels, caption in zip(scenes.digit, scenes.labels, scenes.captions, strict=True):
        there = {6 * int(d) + c for c, d in enumerate(digit) if d >= 0}
        assert set(np.unique(labels)) - {60} == there
        named = [(10 + c, d) for c, d in enumerate(digit) if d >= 0]
        assert caption[: 2 * len(named)].tolist() == [int(token) for pair in named for token in pair]
        assert set(caption[2 * len(named) :]) <= {31}


def test_answers(scenes):
    questions, answers = scene_questions(scenes, seed=5)
    for i, (digit, place) in enumerate(zip(scenes.digit, scenes.place, strict=True)):
        one, two = questions[i, 2, 1] - 10, questions[i, 2, 2] - 10
        assert digit[one] >= 0
        assert digit[two] >= 0
        assert answers[i, 0] == digit[questions[i, 0, 1] - 10]
        assert answers[i, 1] - 18 == (digit >= 0).sum()
        assert (answers[i, 2] == 16) == (place[one, 1] < place[two, 1])
        assert (answers[i, 3] == 16) == (digit[one] > digit[two])
        others = [c for c in range(6) if digit[c] >= 0 and c != one]
        nearest = min(others, key=lambda c: ((place[c] - place[one]) ** 2).sum())
        assert answers[i, 4] == 10 + nearest
        assert (answers[i, 5] == 16) == (digit[questions[i, 5, 1] - 10] >= 0)


def test_an_unknown_split():
    with pytest.raises(ValueError, match="Unknown split 'val'"):
        draw_digit_scenes(1, seed=0, split="val")
