"""The converters of S4, S4D, DSS and The Annotated S4: exact both ways, strict, and from older versions."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_flax import annotated_s4, s5
from ssmjax.checkpoints.from_torch import dss, s4, s4d_minimal, s4nd, s5_pytorch
from ssmjax.checkpoints.mapping import KeyTable
from ssmjax.layers import DSS, S4, S4D, S4ND, S5
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
        (lambda: s4.convert({}, *s4.layer_arguments(dplr, state)), "missing: D, kernel.A_imag.*, kernel.l_kernel"),
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


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("variant", sorted(annotated_s4.VARIANTS))
def test_annotated_without_the_array_that_tells_the_sizes(variant):
    first = "A_re" if variant == "s4d" else "Lambda_re"
    names = {name for name, _, _ in annotated_s4.VARIANTS[variant]} - {first, "D"}
    state = dict.fromkeys([*names, *(["B_re", "B_im"] if variant == "s4d" else [])], np.zeros((3, D)))
    with pytest.raises(ValueError, match=f"unknown: x\n  missing: {', '.join(sorted([first, 'D']))}$"):
        annotated_s4.layer_arguments(variant, state | {"x": np.ones(2)})


def test_annotated_lists_an_output_of_another_shape():
    cls, arguments = annotated_s4.layer_arguments("s4", {"Lambda_re": np.zeros((3, D))}, l_max=8)
    theirs = annotated_s4.to_reference(arrays_of_layer(cls, arguments), "s4")
    for last in (1, 3):  # 1 would be broadcast to the parts of a complex number
        wrong = theirs | {"C": np.ones((3, D, last), np.float32)}
        with pytest.raises(ValueError, match=rf"C: got \(3, {D}, {last}\) float32"):
            annotated_s4.convert(wrong, "s4", arguments)


def arrays_of_layer(cls, arguments):
    return model_arrays(oracle.lively(lambda: cls(**arguments, rngs=nnx.Rngs(0))))


def s4nd_state(**changes):
    arguments = {"d_model": 3, "d_state": 4, "kernel": "s4", "l_max": (4, 6)} | changes
    arrays = model_arrays(S4ND(**arguments, rngs=nnx.Rngs(1)))
    lengths = {f"kernel.{i}.l_kernel": np.int64(length) for i, length in enumerate(arguments["l_max"])}
    return arguments, s4nd.to_reference(arrays) | (lengths if arguments["kernel"] == "s4" else {})


def test_s4nd_lists_missing_lengths():
    arguments, state = s4nd_state()
    del state["D"], state["kernel.0.l_kernel"]
    message = r"(?s)unknown: kernel\.2\.l_kernel.*missing: D, kernel\.0\.l_kernel$"
    for call in (lambda state: s4nd.layer_arguments({}, state), lambda state: s4nd.convert(state, arguments)):
        with pytest.raises(ValueError, match=message):
            call(state | {"kernel.2.l_kernel": np.asarray(4)})
    with pytest.raises(ValueError, match=r"kernel\.1\.l_kernel, .*output_linear\.0\.bias$"):
        s4nd.layer_arguments({}, {"output_linear.0.weight": np.ones((3, 3))})


def test_s4nd_refuses_a_mode_that_does_not_decay():
    arguments, state = s4nd_state(kernel="s4d", real_transform="clip")
    assert s4nd.convert(state, arguments).keys() >= {"kernels.1.A_real"}
    state["kernel.1.A_real"] = -np.ones_like(state["kernel.1.A_real"])
    with pytest.raises(ValueError, match="the real part of A must be -0.0001 at most.*got 1.0"):
        s4nd.convert(state, arguments)


@pytest.mark.parametrize("name", ["seq.B", "seq.C"])
def test_s5_pytorch_lists_what_is_missing(name):
    state = s5_pytorch.to_reference(model_arrays(S5(4, d_state=2, conj_sym=False, rngs=nnx.Rngs(0))))
    assert s5_pytorch.layer_arguments(state)["d_model"] == 4
    missing = {key: x for key, x in state.items() if key not in (name, "seq.log_step")}
    with pytest.raises(ValueError, match=f"(?s)unknown: seq.x.*missing: {name}, seq.log_step$"):
        s5_pytorch.layer_arguments(missing | {"seq.x": np.ones(2)})


def test_s5_without_the_start_of_its_outputs():
    for bidirectional in ("none", "inclusive"):
        arguments = {"d_model": 4, "d_state": 4, "bidirectional": bidirectional}
        ours = arrays_of_layer(S5, arguments)
        theirs = s5.to_reference(ours, arguments)
        assert ("C1" in theirs) == (bidirectional == "inclusive")
        assert_equal(s5.convert(theirs, arguments), ours)


def test_from_flax_needs_no_family_of_torch():
    code = "import sys, ssmjax.checkpoints.from_flax; print([n for n in sys.modules if 'from_torch' in n])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
