"""How far one call of a layer goes, as `benchmarks/call_depth.py` counts it."""

from benchmarks.call_depth import BEFORE, cases, counts_of, travel


def test_a_call_of_s4d_is_half_as_long_as_before():
    """A new helper or layer of checks on this way is worth a look; see `--trace S4D`."""
    functions, switches, checks, maths = counts_of(travel(*cases()["S4D"]()))
    assert 2 * functions <= BEFORE["S4D"][0]
    assert 2 * switches <= BEFORE["S4D"][1]
    assert checks / maths < BEFORE["S4D"][2] / BEFORE["S4D"][3]
