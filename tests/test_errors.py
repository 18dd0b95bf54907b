"""Numbers that arguments take, and the messages where they are none."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.errors import as_int, as_nonnegative


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3), np.array(3), jnp.array(3)])
def test_whole_numbers(number):
    assert as_int("f", "n", number) == 3 and type(as_int("f", "n", number)) is int


@pytest.mark.parametrize(
    ("got", "bounds", "message"),
    [
        (3.0, {}, "f: n must be an int, got 3.0"),
        (True, {}, "f: n must be an int, got True"),
        ("3", {}, "f: n must be an int, got '3'"),
        (None, {"least": 0}, "f: n must be an int, at least 0, got None"),
        (0, {"least": 1}, "f: n must be a positive int, got 0"),
        (9, {"least": 0, "most": 5}, "f: n must be an int, at least 0, at most 5, got 9"),
        (9, {"most": 5, "wanted": "small", "remedy": "Take 5."}, "f: n must be small, got 9. Take 5."),
    ],
)
def test_what_is_no_whole_number(got, bounds, message):
    with pytest.raises(ValueError, match=message):
        as_int("f", "n", got, **bounds)


@pytest.mark.parametrize("number", [0, 2, 0.5, np.float32(0.5), np.array(0.5)])
def test_numbers(number):
    assert as_nonnegative("f", "x", number) == float(number)


@pytest.mark.parametrize("got", [-1, float("nan"), float("inf"), "1", True, None, np.ones(1)])
def test_what_is_no_number(got):
    with pytest.raises(ValueError, match="f: x must be a finite number, at least 0, got"):
        as_nonnegative("f", "x", got)


def test_what_is_not_positive():
    with pytest.raises(ValueError, match="f: x must be a positive, finite number, got 0"):
        as_nonnegative("f", "x", 0, positive=True)
