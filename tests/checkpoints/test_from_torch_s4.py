"""The converters of S4, S4D, DSS and The Annotated S4: exact both ways, strict, and from older versions."""

import jax
import numpy as np
import pytest
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_flax import annotated_s4
from ssmjax.checkpoints.from_torch import dss, s4, s4d_minimal
from ssmjax.checkpoints.from_torch.mapping import KeyTable
from ssmjax.layers import DSS, S4, S4D
from tests.layers import convolution_oracle as oracle

D = 4


def arrays_of(cls, **arguments):
    return model_arrays(oracle.lively(lambda: cls(D, d_state=4, **arguments, rngs=nnx.Rngs(0))))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("cls", [S4, S4D])
@pytest.mark.parametrize("prefix", ["", "layer."])
def test_s4_there_and_back(cls, prefix):
    ours = arrays_of(cls)
    theirs = s4.to_reference(ours, 1024 if cls is S4 else None, prefix)
    mode = {"mode": "dplr" if cls is S4 else "diag", "d_model": D, "d_state": 4}
    found, arguments = s4.layer_arguments(mode, theirs, prefix)
    assert found is cls
    assert_equal(s4.convert(theirs, cls, arguments, prefix=prefix), ours)


def test_a_whole_stack_of_s4_layers():
    """The rules stack layers, as those of a model do."""
    table = KeyTable(s4.rules("model.layers.{i}.layer.layer.", "layers.ssm."))
    one = arrays_of(S4D)
    ours = {f"layers.ssm.{name}": np.stack([x, 2 * x]) for name, x in one.items()}
    theirs = table.to_source(ours)
    assert "model.layers.1.layer.layer.kernel.A_imag" in theirs
    specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in ours.items()}
    assert_equal(table.to_ours(theirs, specs), ours)


def test_version_3_is_renamed():
    ours = arrays_of(S4D)
    new = s4.to_reference(ours)
    old = {"model.0.D": new["D"], "model.0.output_linear.weight": np.ones(3), "model.0.kernel.kernel.omega": np.ones(9)}
    names = {"inv_dt": "log_dt", "A_real": "inv_w_real", "A_imag": "w_imag", "B": "B", "C": "C"}
    for name, before in names.items():
        x = new[f"kernel.{name}"]
        old[f"model.0.kernel.kernel.{before}"] = x[:, 0] if before == "log_dt" else -x if before == "w_imag" else x
    upgraded = s4.upgrade(old | {"decoder.D": np.ones(2)})
    assert set(upgraded) == {f"model.0.layer.{name}" for name in new} | {"model.0.output_linear.weight", "decoder.D"}
    for name, x in new.items():
        np.testing.assert_array_equal(upgraded[f"model.0.layer.{name}"], x)
    assert set(s4.upgrade(new)) == set(new)  # nothing to do


def test_s4_refuses():
    state = s4.to_reference(arrays_of(S4), 1024)
    dplr, diag = {"d_model": D, "d_state": 4}, {"d_model": D, "d_state": 4, "mode": "diag"}
    for call, message in (
        (lambda: s4.layer_arguments(dplr, {"kernel.l_kernel": np.array(0)}), "l_kernel must be the length of a stored"),
        (lambda: s4.layer_arguments(dplr | {"mood": 1}, state), "Unknown argument 'mood'. Did you mean 'mode'"),
        (lambda: s4.layer_arguments(dplr | {"mode": "dense"}, state), "Unknown mode 'dense'"),
        (lambda: s4.convert(state, S4, s4.layer_arguments(dplr, state)[1] | {"l_max": 64}), "must be 64, the layer's"),
        (lambda: s4.convert(state | {"E": np.ones(1)}, *s4.layer_arguments(dplr, state)), "unknown: E"),
        (lambda: s4.convert({}, *s4.layer_arguments(diag, {})), "missing: D, kernel.A_imag"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_mode_that_does_not_decay_is_refused():
    state = s4.to_reference(arrays_of(S4D))
    state["kernel.A_real"] = np.full_like(state["kernel.A_real"], -0.1)
    arguments = {"d_model": D, "d_state": 4, "mode": "diag", "real_transform": "none"}
    with pytest.raises(ValueError, match="the real part of A must be -0.0001 at most.*got 0.1"):
        s4.convert(state, *s4.layer_arguments(arguments, state))


def test_the_minimal_version_there_and_back():
    rng = np.random.default_rng(0)
    shapes = {"D": (D,), "kernel.C": (D, 2, 2), "kernel.log_dt": (D,)}
    shapes |= {"kernel.log_A_real": (D, 2), "kernel.A_imag": (D, 2)}
    theirs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arguments = s4d_minimal.layer_arguments(theirs)
    ours = s4d_minimal.convert(theirs, arguments)
    assert_equal(s4d_minimal.to_reference(ours), theirs)
    layer = S4D(**arguments, rngs=nnx.Rngs(0))
    set_model_arrays(layer, ours)
    A = -np.exp(theirs["kernel.log_A_real"]) + 1j * theirs["kernel.A_imag"]
    np.testing.assert_allclose(layer.kernel.A(), A, rtol=1e-6)


@pytest.mark.parametrize("version", sorted(dss.VERSIONS))
def test_dss_there_and_back(version):
    arguments = dss.layer_arguments({"d_model": D, "d_state": 4, "version": version, "bidirectional": True})
    ours = model_arrays(oracle.lively(lambda: DSS(**arguments, rngs=nnx.Rngs(0))))
    assert_equal(dss.convert(dss.to_reference(ours), arguments), ours)


def test_dss_refuses():
    for arguments, message in (
        ({"d_model": D, "version": "log"}, "Unknown version 'log'"),
        ({"d_model": D, "L": 3}, "Unknown argument 'L'"),
    ):
        with pytest.raises(ValueError, match=message):
            dss.layer_arguments(arguments)


@pytest.mark.parametrize("variant", sorted(annotated_s4.VARIANTS))
def test_annotated_there_and_back(variant):
    first = "A_re" if variant == "s4d" else "Lambda_re"
    cls, arguments = annotated_s4.layer_arguments(variant, {first: np.zeros((3, D))}, l_max=8)
    ours = model_arrays(oracle.lively(lambda: cls(**arguments, rngs=nnx.Rngs(0))))
    ours["kernel.A_real"] = np.abs(ours["kernel.A_real"]) + 0.1
    if variant != "s4":
        ours["kernel.B"] = np.stack([np.ones((1, D, 3)), np.zeros((1, D, 3))], axis=-1).astype(np.float32)
    theirs = annotated_s4.to_reference(ours, variant)
    assert theirs[first].shape == (3, D) and (theirs[first] < 0).all()
    if variant == "s4":
        assert theirs["B"].dtype == np.complex64
    assert_equal(annotated_s4.convert(theirs, variant, arguments), ours)


@pytest.mark.usefixtures("as_a_user")
def test_annotated_refuses():
    with pytest.raises(ValueError, match="Unknown variant 's5'"):
        annotated_s4.layer_arguments("s5", {})
    cls, arguments = annotated_s4.layer_arguments("dss", {"Lambda_re": np.zeros((3, D))})
    theirs = annotated_s4.to_reference(model_arrays(oracle.lively(lambda: cls(**arguments, rngs=nnx.Rngs(0)))), "dss")
    with pytest.raises(ValueError, match="the real part of A must be -0.0001 at most"):
        annotated_s4.convert(theirs | {"Lambda_re": np.ones((3, D), np.float32)}, "dss", arguments)
