"""The conventions of S4 and of S5: which parameters of real models are in which group, and what that does to them."""

import re

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import ssmjax
from ssmjax.training.optim import adamw
from ssmjax.training.optim_groups import S5_MODES, s4_groups, s5_groups
from ssmjax.training.parameter_info import ParameterInfo, parameter_info

SCHOOLS = {
    "s4": {"kernel.inv_dt", "kernel.A_real", "kernel.A_imag", "kernel.B", "kernel.P"},
    "s4d": {"kernel.inv_dt", "kernel.A_real", "kernel.A_imag", "kernel.B"},
    "dss": {"kernel.log_dt", "kernel.Lambda", "kernel.W"},
    "s4nd": {f"{part}.{name}" for part in ("kernels.0", "kernels.1") for name in ("inv_dt", "A_real", "A_imag", "B")},
    "s5": {"Lambda_re", "Lambda_im", "B", "log_step"},
    "lru": {"nu_log", "theta_log", "gamma_log", "B_re", "B_im"},
}


def near(size):
    """A step of this size: float32's rounding of the parameter that it is taken from is the larger part of this."""
    return pytest.approx(size, rel=1e-3)


def parameters(layer):
    """The names of a model's parameters."""
    model = nnx.eval_shape(lambda: ssmjax.create_model(f"{layer}_classifier_nano"))
    return [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]


def step_sizes(groups, params, *, peak=0.5, weight_decay=0.0):
    """How far one step of AdamW, whose first is the sign of the gradient, moves each parameter from 1."""
    optimizer = adamw(peak, steps=10, groups=groups, weight_decay=weight_decay, clip_norm=None)
    ones = {name: jnp.ones((1,)) for name in params}
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    return {name: -float(update[0]) for name, update in updates.items()}


def moved(groups, rate, params, **options):
    """The names of the state space's parameters that move by this much."""
    found = step_sizes(groups, params, **options)
    return {name for name, size in found.items() if size == near(rate)}


@pytest.mark.parametrize(
    ("layer", "mode"),
    [(layer, mode) for layer in sorted(SCHOOLS) for mode in (S5_MODES if layer in ("s5", "lru") else ["s4"])],
)
def test_kinds_and_names_make_the_same_groups(layer, mode):
    groups = s4_groups(output_rate=1.0, global_rate=1.0) if mode == "s4" else s5_groups(mode, dt_global=layer == "s5")
    model = nnx.eval_shape(lambda: ssmjax.create_model(f"{layer}_classifier_nano"))
    for name, info in parameter_info(model).items():
        parts = name.split(".")
        assert info.kind is not None
        for group in groups:
            assert group.holds(parts, info) == group.holds(parts, ParameterInfo()), (name, group)


@pytest.mark.parametrize("layer", sorted(SCHOOLS))
def test_the_state_space_has_a_rate_of_its_own(layer):
    params = parameters(layer)
    groups = s4_groups(0.01) if layer in ("s4", "s4d", "dss", "s4nd") else s5_groups("standard", 0.01)
    # With weight decay, so that what is decayed would move further than its rate.
    assert moved(groups, 0.01, params, weight_decay=0.5) == {f"layers.layer.{name}" for name in SCHOOLS[layer]}


def test_s4_step_sizes_and_outputs():
    params = parameters("s4")
    sizes = step_sizes(s4_groups(0.01, step_rate=0.02, output_rate=0.03), params)
    assert sizes["layers.layer.kernel.inv_dt"] == near(0.02)
    assert sizes["layers.layer.kernel.A_real"] == near(0.01)
    assert sizes["layers.layer.kernel.C"] == near(0.03)
    assert sizes["head.kernel"] == sizes["layers.layer.D"] == near(0.5)


def test_s4_decays_neither_biases_nor_norms():
    params = parameters("s4")
    sizes = step_sizes(s4_groups(0.01), params, weight_decay=0.5)
    plain = {name for name in params if name.split(".")[-1] in ("bias", "scale", "D")}
    assert {name for name in plain if sizes[name] != near(0.5)} == set()
    assert sizes["layers.layer.kernel.C"] == sizes["layers.gate.out.kernel"] == near(0.75)
    sizes = step_sizes(s4_groups(0.01, global_rate=0.5, weight_decay=0.5), params, weight_decay=0.5)
    assert sizes["layers.layer.D"] == near(0.75)
    assert sizes["layers.norm.bias"] == near(0.5)


EXPECTED = {
    "standard": {"B": 0.01, "C": 0.5},
    "BandCdecay": {"B": 0.01 * 1.4, "C": 0.5},
    "BfastandCdecay": {"B": 0.5, "C": 0.5},
    "noBCdecay": {"B": 0.01, "C": 0.01, "D": 0.01},
}


@pytest.mark.parametrize("mode", S5_MODES)
@pytest.mark.parametrize("dt_global", [False, True])
def test_s5_modes(mode, dt_global):
    sizes = step_sizes(s5_groups(mode, 0.01, weight_decay=0.4, dt_global=dt_global), parameters("s5"))
    expected = {"Lambda_re": 0.01, "Lambda_im": 0.01, "D": 0.5, "log_step": 0.5 if dt_global else 0.01}
    for name, size in (expected | EXPECTED[mode]).items():
        assert sizes[f"layers.layer.{name}"] == near(size), name
    assert sizes["layers.norm.scale"] == near(0.5)


@pytest.mark.parametrize("mode", S5_MODES)
def test_s5_decays_biases_and_norms_as_the_original(mode):
    params = parameters("s5")
    sizes = step_sizes(s5_groups(mode, 0.01, weight_decay=0.4, global_rate=0.5), params)
    others = {name for name in params if "layers.layer." not in name}
    assert {name for name in others if sizes[name] != near(0.5 * 1.4)} == set()
    assert sizes["layers.layer.Lambda_re"] == near(0.01)
    assert sizes["layers.layer.D"] == near(0.01 if mode == "noBCdecay" else 0.7)


def test_every_parameter_is_trained():
    params = parameters("s5")
    optimizer = adamw(0.1, steps=10, groups=s5_groups("noBCdecay", 0.01))
    ones = {name: jnp.ones((1,)) for name in params}
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    new = optax.apply_updates(ones, updates)
    assert {name for name in params if float(new[name][0]) == 1.0} == set()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s5_groups("BandC"), "Unknown mode of s5_groups 'BandC'. Did you mean 'BandCdecay'"),
        (lambda: s5_groups(0.01), "Unknown mode of s5_groups 0.01.*The rate is the second argument"),
        (lambda: s5_groups(float("nan")), "Unknown mode of s5_groups nan"),
        (lambda: s5_groups(dt_global="no"), "s5_groups: dt_global must be True or False, got 'no'"),
    ],
)
def test_messages(as_a_user, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf"), -float("inf"), "fast", [0.1], True])
@pytest.mark.parametrize("name", ["state_rate", "step_rate", "output_rate", "weight_decay", "global_rate"])
def test_what_is_no_rate(as_a_user, name, rate):
    message = re.escape(f"{name} must be a finite number, at least 0, got {rate!r}. A peak learning rate")
    with pytest.raises(ValueError, match=f"s4_groups: {message}"):
        s4_groups(**{name: rate})
    if name not in ("step_rate", "output_rate"):
        with pytest.raises(ValueError, match=f"s5_groups: {message}"):
            s5_groups(**{name: rate})


@pytest.mark.parametrize("groups", [s4_groups, s5_groups])
def test_a_rate_that_is_missing(as_a_user, groups):
    with pytest.raises(ValueError, match="state_rate must be a finite number, at least 0, got None"):
        groups(state_rate=None)
