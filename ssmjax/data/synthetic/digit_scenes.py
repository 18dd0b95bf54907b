"""DigitScenes: small pictures with several real handwritten digits in colors, and questions about them.

Digits of scikit-learn's `load_digits` (8 x 8 pixels) stand anywhere on a canvas of 48 x 48, on gradients with noise and
strokes. Each picture has 3 to 5 of them in colors that are all different, so a color names a digit. Test pictures have
digits that no training picture has.
"""

import dataclasses

import numpy as np

from ssmjax import errors

__all__ = ["COLORS", "QUESTION_TYPES", "SCENE_VOCABULARY", "DigitScenes", "draw_digit_scenes", "scene_questions"]

SIDE, GLYPH, PATCH = 48, 8, 4
FEWEST, MOST = 3, 5

COLORS = ("red", "green", "blue", "yellow", "pink", "cyan")
"""The colors' names, in the order of their tokens."""

RGB = np.array([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.3, 0.4, 1], [1, 1, 0.2], [1, 0.3, 1], [0.2, 1, 1]], np.float32)

QUESTION_TYPES = ("digit", "count", "left", "greater", "nearest", "exists")
"""Which digit is it? How many digits? Is one left of the other? Is one greater? Which is nearest? Is there one?"""

_DIGIT, _COLOR, _YES, _NO, _COUNT, _TYPE, _ASK, _NONE = 0, 10, 16, 17, 18, 24, 30, 31

SCENE_VOCABULARY: dict[int, str] = (
    {i: str(i) for i in range(10)}
    | {_COLOR + i: name for i, name in enumerate(COLORS)}
    | {_YES: "yes", _NO: "no", _ASK: "?", _NONE: "-"}
    | {_COUNT + i: f"{i} digits" for i in range(6)}
    | {_TYPE + i: name for i, name in enumerate(QUESTION_TYPES)}
)
"""The words of questions, answers and captions, by token."""


@dataclasses.dataclass(frozen=True)
class DigitScenes:
    """Pictures, and what is in them.

    Attributes:
        images: (b 48 48 3) float16, from 0 to 1.2.
        digit: (b 6) int8, the digit of each color, -1 where there is none.
        place: (b 6 2) float32, the row and column of its upper left corner.
        labels: (b 144) int8, for each patch of 4 x 4 pixels, row by row: 6 times the digit plus the color, or 60.
        captions: (b 10) int8, color and digit of all that is there, in the order of the colors, filled with 31.
    """

    images: np.ndarray
    digit: np.ndarray
    place: np.ndarray
    labels: np.ndarray
    captions: np.ndarray


def draw_digit_scenes(count: int, *, seed: int, split: str = "train") -> DigitScenes:
    """Draws pictures.

    Args:
        count: How many.
        seed: Which.
        split: "train" (digits 0 to 1,199 of a fixed order), "validation" (the next 237) or "test" (the last 360).

    Raises:
        ValueError: There is no such split.

    >>> scenes = draw_digit_scenes(3, seed=0)
    >>> scenes.images.shape, scenes.labels.shape, scenes.captions.shape
    ((3, 48, 48, 3), (3, 144), (3, 10))
    """
    from sklearn.datasets import load_digits

    splits = {"train": slice(0, 1200), "validation": slice(1200, 1437), "test": slice(1437, None)}
    errors.require_known("split", split, splits)
    bunch = load_digits()
    chosen = np.random.default_rng(0).permutation(len(bunch.target))[splits[split]]
    rng = np.random.default_rng([seed, sorted(splits).index(split)])
    images = _backgrounds(rng, count)
    number = rng.integers(FEWEST, MOST + 1, count)
    places = _places(rng, number)
    colors = np.argsort(rng.random((count, len(COLORS))), axis=1)[:, :MOST]
    which = chosen[rng.integers(0, len(chosen), (count, MOST))]
    digit, place = np.full((count, len(COLORS)), -1, np.int8), np.full((count, len(COLORS), 2), -99, np.float32)
    labels = np.full((count, SIDE // PATCH, SIDE // PATCH), 60, np.int8)
    for j in range(MOST):
        rows = np.where(j < number)[0]
        corner, color, glyph = places[rows, j], colors[rows, j], which[rows, j]
        _paint(images, rows, corner, (bunch.images[glyph] / 16).astype(np.float32), RGB[color])
        digit[rows, color], place[rows, color] = bunch.target[glyph], corner
        _label(labels, rows, corner, bunch.target[glyph] * len(COLORS) + color)
    return DigitScenes(
        images.clip(0, 1.2).astype(np.float16), digit, place, labels.reshape(count, -1), _captions(digit)
    )


def scene_questions(scenes: DigitScenes, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One question of each type about each picture.

    Args:
        scenes: The pictures.
        seed: Which colors are asked for.

    Returns:
        Questions (b 6 4) int8, each of a type, two colors (31 for none) and a question mark; answers (b 6) int8.

    >>> questions, answers = scene_questions(draw_digit_scenes(2, seed=0), seed=1)
    >>> [SCENE_VOCABULARY[int(token)] for token in questions[0, 1]]
    ['count', '-', '-', '?']
    """
    rng = np.random.default_rng([seed, 7])
    digit, place, count = scenes.digit, scenes.place, len(scenes.digit)
    there, row = digit >= 0, np.arange(count)
    order = np.argsort(np.where(there, rng.random(digit.shape), 9.0), axis=1)  # those that are there come first
    one, two, absent = order[:, 0], order[:, 1], order[:, -1]
    questions, answers = np.full((count, 6, 4), _NONE, np.int8), np.zeros((count, 6), np.int8)
    questions[:, :, 0], questions[:, :, 3] = _TYPE + np.arange(6), _ASK
    questions[:, (0, 2, 3, 4), 1] = (_COLOR + one)[:, None]
    questions[:, (2, 3), 2] = (_COLOR + two)[:, None]
    asked = np.where(rng.random(count) < 0.5, one, absent)
    questions[:, 5, 1] = _COLOR + asked
    distance = ((place - place[row, one][:, None]) ** 2).sum(-1)
    distance[~there] = distance[row, one] = np.inf
    answers[:, 0] = digit[row, one]
    answers[:, 1] = _COUNT + there.sum(1)
    answers[:, 2] = np.where(place[row, one, 1] < place[row, two, 1], _YES, _NO)
    answers[:, 3] = np.where(digit[row, one] > digit[row, two], _YES, _NO)
    answers[:, 4] = _COLOR + distance.argmin(1)
    answers[:, 5] = np.where(there[row, asked], _YES, _NO)
    return questions, answers


def _backgrounds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Gradients along both axes, noise, and three gray strokes each."""
    ramp = np.linspace(0, 1, SIDE, dtype=np.float32)
    slope = rng.random((count, 2, 3)).astype(np.float32)
    tilt = slope[:, 0, None, None] * ramp[:, None, None] + slope[:, 1, None, None] * ramp[None, :, None]
    images = 0.15 + 0.25 * tilt + 0.06 * rng.standard_normal((count, SIDE, SIDE, 3), dtype=np.float32)
    for _ in range(3):
        y, x = rng.integers(0, SIDE - 10, (2, count))
        flat = rng.random(count) < 0.5
        for i in range(10):
            images[np.arange(count), y + np.where(flat, 0, i), x + np.where(flat, i, 0)] = 0.5
    return images


def _places(rng: np.random.Generator, number: np.ndarray) -> np.ndarray:
    """Corners (b 5 2), at least 9 pixels apart in one direction: drawn again until they are."""
    places = np.full((len(number), MOST, 2), -99, np.int64)
    for j in range(MOST):
        missing = j < number
        while missing.any():
            corner = rng.integers(0, SIDE - GLYPH + 1, (len(number), 2))
            apart = np.abs(places[:, :j] - corner[:, None]).max(-1).min(1, initial=99)
            taken = missing & (apart > GLYPH)
            places[taken, j] = corner[taken]
            missing &= ~taken
    return places


def _paint(images, rows, corner, alpha, color):
    y = corner[:, 0, None, None] + np.arange(GLYPH)[None, :, None]
    x = corner[:, 1, None, None] + np.arange(GLYPH)[None, None, :]
    row, alpha = rows[:, None, None], alpha[..., None]
    images[row, y, x] = images[row, y, x] * (1 - alpha) + color[:, None, None] * alpha


def _label(labels, rows, corner, label):
    """Marks the patches whose middle is within 5 pixels of the glyph's."""
    middle = corner + (GLYPH - 1) / 2
    centers = np.arange(SIDE // PATCH) * PATCH + (PATCH - 1) / 2
    near = np.abs(centers[None, :, None] - middle[:, None]) < 5  # (rows patches 2)
    inside = near[:, :, None, 0] & near[:, None, :, 1]
    labels[rows] = np.where(inside, label[:, None, None], labels[rows])


def _captions(digit: np.ndarray) -> np.ndarray:
    order = np.argsort(digit < 0, axis=1, kind="stable")[:, :MOST]
    kept = np.take_along_axis(digit, order, axis=1)
    pairs = np.stack([np.where(kept < 0, _NONE, _COLOR + order), np.where(kept < 0, _NONE, kept)], axis=-1)
    return pairs.reshape(len(digit), -1).astype(np.int8)
