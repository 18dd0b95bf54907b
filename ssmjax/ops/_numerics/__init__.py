"""Numerics that ops share: double-floats, complex numbers as pairs, powers, permutations, derivatives, dtypes."""
