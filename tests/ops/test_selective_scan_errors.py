"""What a wrong call of the selective scan is told."""

import jax
import jax.numpy as jnp
import pytest

from ssmjax import ops

RIGHT = {"x": (2, 6, 4), "dt": (2, 6, 4), "A": (4, 3), "B": (2, 6, 3), "C": (2, 6, 3)}


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": (6, 4)}, r"x must be of rank 3, \(b l e\), got \(6, 4\) float32"),
        ({"x": (2, 4, 6), "dt": (2, 4, 6)}, r"channels-first layout \(b e l\).*x.swapaxes\(1, 2\)"),
        ({"A": (4,)}, r"A must be of rank 2, \(e n\)"),
        ({"A": (5, 3)}, r"A must be \(e n\) = \(4, 3\), got \(5, 3\)"),
        ({"dt": (2, 6, 1)}, r"dt must be \(b l e\) = \(2, 6, 4\), got \(2, 6, 1\)"),
        ({"B": (2, 3, 6)}, "channels-first"),
        ({"B": (2, 6, 3, 3)}, "groups g that divides e = 4"),
        ({"B": (2, 6, 2, 3), "C": (2, 6, 4, 3)}, "C must be of as many groups as B, 2"),
        ({"C": (2, 5, 3)}, r"C must be \(b l n\) = \(2, 6, 3\)"),
        ({"h0": (2, 3, 4)}, r"h0 must be \(b e n\) = \(2, 4, 3\)"),
        ({"D": (3,)}, r"D must be \(e\) = \(4,\)"),
        ({"segment_ids": (2, 6)}, "segment_ids must be an integer array"),
    ],
)
def test_wrong_shapes(changed, message):
    with pytest.raises(ValueError, match=message):
        ops.selective_scan(**{name: jnp.ones(shape) for name, shape in (RIGHT | changed).items()})


@pytest.mark.usefixtures("as_a_user")
def test_wrong_dtypes_and_names():
    right = {name: jnp.ones(shape) for name, shape in RIGHT.items()}
    with pytest.raises(ValueError, match="x must be a real floating array, got .* int32"):
        ops.selective_scan(**right | {"x": jnp.ones((2, 6, 4), jnp.int32)})
    with pytest.raises(ValueError, match="x must be an array, got a list"):
        ops.selective_scan(**right | {"x": [1.0]})
    with pytest.raises(ValueError, match="B must be real when A is real"):
        ops.selective_scan(**right | {"B": 1j * right["B"]})
    with pytest.raises(ValueError, match="Did you mean 'reference'"):
        ops.selective_scan(**right, implementation="referense")
    with pytest.raises(NotImplementedError, match="selective_scan has no 'pallas_tpu' implementation yet"):
        ops.selective_scan(**right, implementation="pallas_tpu")
    with pytest.raises(NotImplementedError, match="an axis has size 0"):
        ops.selective_scan(**{k: v[:, :0] if k != "A" else v for k, v in right.items()}, implementation="xla")


@pytest.mark.usefixtures("as_a_user")
def test_missing_arrays_and_traced_flags():
    right = {name: jnp.ones(shape) for name, shape in RIGHT.items()}
    with pytest.raises(ValueError, match="A must be an array, got a NoneType"):
        ops.selective_scan(**right | {"A": None})
    with pytest.raises(ValueError, match="reverse must be True or False, got 'no'"):
        ops.selective_scan(**right, reverse="no")
    with pytest.raises(ValueError, match="reverse must be True or False.*static_argnames"):
        jax.jit(ops.selective_scan)(**right, reverse=True)
