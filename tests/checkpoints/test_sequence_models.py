"""The converters of whole sequence models: exact both ways, strict, from every version and with every head."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays, write_safetensors
from ssmjax.checkpoints.from_flax import annotated_model, s5_model
from ssmjax.checkpoints.from_torch import s4_model
from ssmjax.models import registry
from ssmjax.models.sequence_classifier import SequenceConfig
from tests.layers import quick

S4 = dataclasses.replace(ssmjax.model_config("s4_classifier_listops"), d_model=8, depth=2, l_max=16, vocab_size=5)
S5 = dataclasses.replace(ssmjax.model_config("s5_classifier_retrieval"), d_model=8, depth=2, d_state=32, vocab_size=5)


def arrays_of(config):
    return model_arrays(quick.lively(lambda: registry.build("sequence_classifier", config)))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def lightning(state, depth):
    """As a checkpoint of the original's trainer has it."""
    names = {}
    for name, x in state.items():
        first, _, rest = name.partition(".")
        number = ".0" if first == "decoder" or (first == "encoder" and "weight" in name) else ""
        names[f"model.{name}" if first in ("layers", "norm") else f"{first}{number}.{rest}"] = x
    counters = {f"model.layers.{i}.norm.norm.num_batches_tracked": np.asarray(3) for i in range(depth)}
    return names | counters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prenorm": True, "final_norm": True, "norm": "layer"},
        {"vocab_size": None, "in_features": 3, "encoder_bias": True},
        {"layer": "s4d", "l_max": None},
    ],
)
def test_s4_there_and_back(changes):
    config = dataclasses.replace(S4, **changes)
    ours = arrays_of(config)
    theirs = s4_model.to_reference(ours, config)
    assert_equal(s4_model.convert(theirs, config), ours)
    assert_equal(s4_model.convert(lightning(theirs, config.depth), config), ours)


def test_s4_of_version_3():
    ours = arrays_of(S4)
    old = {}
    renamed = {"inv_dt": "log_dt", "A_real": "inv_w_real", "A_imag": "w_imag", "l_kernel": "L"}
    for name, x in lightning(s4_model.to_reference(ours, S4), S4.depth).items():
        before, found, last = name.partition(".layer.layer.kernel.")
        if found:
            x = {"inv_dt": lambda x: x[:, 0], "A_imag": lambda x: -x}.get(last, lambda x: x)(x)
            old[f"{before}.layer.kernel.kernel.{renamed.get(last, last)}"] = x
        else:
            old[name.replace(".layer.layer.D", ".layer.D")] = x
    assert_equal(s4_model.convert(old, S4), ours)


def test_s4_is_strict():
    theirs = s4_model.to_reference(arrays_of(S4), S4)
    with pytest.raises(ValueError, match=r"(?s)unknown: more.*missing: decoder.output_transform.bias"):
        missing = {name: x for name, x in theirs.items() if name != "decoder.output_transform.bias"}
        s4_model.convert(missing | {"more": np.ones(2)}, S4)
    with pytest.raises(ValueError, match="l_kernel must be 8, the configuration's l_max, got 16. Use l_max=16"):
        s4_model.convert(theirs, dataclasses.replace(S4, l_max=8))


def test_an_s4_without_its_length_is_refused():
    theirs = s4_model.to_reference(arrays_of(S4), S4)
    name = "layers.1.layer.layer.kernel.l_kernel"
    with pytest.raises(ValueError, match=f"(?s)unknown: more\n  missing: {name}$"):
        s4_model.convert({n: x for n, x in theirs.items() if n != name} | {"more": np.ones(2)}, S4)


@pytest.mark.parametrize("layer", ["s4", "s4d"])
def test_an_s4_with_a_mode_that_does_not_decay_is_refused(layer):
    config = dataclasses.replace(S4, layer=layer, layer_options={"real_transform": "clip"})
    ours = arrays_of(config)
    ours["layers.layer.kernel.A_real"] = 1 + np.abs(ours["layers.layer.kernel.A_real"])
    theirs = s4_model.to_reference(ours, config)
    assert_equal(s4_model.convert(theirs, config), ours)
    name = "layers.1.layer.layer.kernel.A_real"
    with pytest.raises(ValueError, match="layers.1: the real part of A must be -0.0001 at most.*got 1.0"):
        s4_model.convert(theirs | {name: np.full_like(theirs[name], -1)}, config)


def test_s4_from_a_file(tmp_path):
    ours = arrays_of(S4)
    path = tmp_path / "model.safetensors"
    path.write_bytes(write_safetensors(lightning(s4_model.to_reference(ours, S4), S4.depth)))
    small = {name: getattr(S4, name) for name in ("d_model", "depth", "l_max", "vocab_size")}
    assert_equal(model_arrays(s4_model.load(path, "s4_classifier_listops", **small)), ours)
    with pytest.raises(ValueError, match="model must be a sequence classifier with an S4 or S4D layer"):
        s4_model.load(path, "s5_classifier")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"documents": 1, "norm": "layer", "gate": "full_glu"},
        {"layer_options": {"c_init": "complex_normal"}, "documents": 1},
        {"gate": "none", "vocab_size": None, "in_features": 3, "bidirectional": "none"},
    ],
)
def test_s5_there_and_back(changes):
    config = dataclasses.replace(S5, **changes)
    ours = arrays_of(config)
    theirs = s5_model.to_reference(ours, config)
    assert_equal(s5_model.convert(theirs, config), ours)
    joint = config.layer_arguments.get("c_init") == "complex_normal"
    assert ("encoder/layers_1/seq/C" in theirs) == (joint or config.bidirectional == "none")
    assert ("decoder/layer1/kernel" in theirs) == (config.documents == 2)
    with pytest.raises(ValueError, match="unknown: encoder/more"):
        s5_model.convert(theirs | {"encoder/more": np.ones(2)}, config)


def test_s5_configuration():
    theirs = {"d_output": 2, "d_model": 8, "n_layers": 3, "activation": "gelu", "batchnorm": True, "prenorm": True}
    config = s5_model.config_from_reference(theirs, {"P": 16, "J": 2, "bidirectional": True}, documents=2)
    assert (config.depth, config.gate, config.norm, config.bidirectional) == (3, "none", "batch", "inclusive")
    assert config.layer_arguments["blocks"] == 2 and config.layer_arguments["clip_eigs"] is False
    with pytest.raises(ValueError, match="Unknown argument 'n_layer'. Did you mean 'n_layers'"):
        s5_model.config_from_reference({"n_layer": 2}, {"P": 16})


def annotated(variant):
    """A configuration read off parameters, and arrays of ours that the original can hold."""
    width, modes = 4, 6
    re, im = ("A_re", "A_im") if variant == "s4d" else ("Lambda_re", "Lambda_im")
    names = {re: (modes, width), im: (modes, width)}
    parameters = {
        f"layers_{i}/seq/{name}": np.zeros(shape, np.float32) for i in range(2) for name, shape in names.items()
    }
    parameters |= {"decoder/bias": np.zeros(10), "encoder/kernel": np.zeros((3, width))}
    config = SequenceConfig(**annotated_model.layer_config(variant, parameters, 16))
    ours = arrays_of(config)
    if variant != "s4":  # which reads no B: ones, and not trained
        ours["layers.layer.kernel.B"] = np.broadcast_to(
            np.array([1, 0], np.float32), ours["layers.layer.kernel.B"].shape
        )
    if variant == "dss":
        ours["layers.layer.kernel.A_real"] = 1 + np.abs(ours["layers.layer.kernel.A_real"])
    return config, ours


@pytest.mark.parametrize("variant", ["s4", "s4d", "dss"])
def test_the_annotated_s4_there_and_back(variant):
    config, ours = annotated(variant)
    assert (config.depth, config.in_features, config.num_classes) == (2, 3, 10)
    theirs = annotated_model.to_reference(ours, variant)
    assert_equal(annotated_model.convert(theirs, variant, config), ours)
    model = nnx.eval_shape(lambda: registry.build("sequence_classifier", config))
    definition, state = nnx.split(model)
    out = jax.eval_shape(
        lambda state, x: nnx.merge(definition, state)(x), state, jax.ShapeDtypeStruct((2, 16, 3), np.float32)
    )
    assert out.shape == (2, 10)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("variant", ["s4", "s4d", "dss"])
def test_the_annotated_s4_is_strict(variant):
    config, ours = annotated(variant)
    theirs = annotated_model.to_reference(ours, variant)
    re = "A_re" if variant == "s4d" else "Lambda_re"
    one = np.ones(2, np.float32)
    for name in ("layers_2/seq/C", "layers_2/seq/B_re", "head/seq/x", "layers_0/seq/x", "more"):
        with pytest.raises(ValueError, match=f"fit the model:\n  unknown: {name}$"):
            annotated_model.convert(theirs | {name: one}, variant, config)
    gone = ("decoder/bias", f"layers_0/seq/{re}", "layers_1/seq/D")
    missing = {name: x for name, x in theirs.items() if name not in gone}
    message = f"unknown: head/seq/x\n  missing: {', '.join(gone)}$"
    for call in (
        lambda state: annotated_model.convert(state, variant, config),
        lambda state: annotated_model.layer_config(variant, state, 16),
    ):
        with pytest.raises(ValueError, match=message):
            call(missing | {"head/seq/x": one})
    with pytest.raises(ValueError, match="Unknown variant 's5'"):
        annotated_model.convert(theirs, "s5", config)
    if variant == "dss":
        name = "layers_1/seq/Lambda_re"
        with pytest.raises(ValueError, match=f"{name}: the real part of A must be -0.0001 at most"):
            annotated_model.convert(theirs | {name: -theirs[name]}, variant, config)
