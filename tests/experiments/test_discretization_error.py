"""The study's theory: the orders of the rules, and Euler's bound."""

import numpy as np
import pytest

from experiments.discretization_error import RULES, errors, order_text, stability


@pytest.fixture(scope="module")
def found():
    return errors(modes=3, steps=(2**-8, 2**-7, 2**-6, 2**-5))


def test_the_rules_have_their_orders(found):
    smooth = {rule: round(float(order_text(found["smooth"], rule))) for rule in RULES}
    assert smooth == {"euler": 1, "bilinear": 2, "zoh": 2, "impulse": 1}
    assert order_text(found["held"], "zoh") == "exact"


def test_zero_order_hold_is_exact_for_a_held_input(found):
    assert max(found["held"]["error"]["zoh"]) < 1e-5
    assert min(min(found["held"]["error"][rule]) for rule in RULES if rule != "zoh") > 5e-5


def test_euler_turns_unstable_at_its_bound():
    bounds = stability(modes=4, length=512)
    np.testing.assert_allclose(bounds["measured"], bounds["predicted"], rtol=1e-3)
    np.testing.assert_allclose(bounds["predicted"][0], 4.0)  # -2 / (-1/2) for the real mode
    for rule in ("bilinear", "zoh", "impulse"):
        assert max(bounds["radius"][rule]) < 1
    assert max(bounds["radius"]["euler"]) > 1
