"""The schedule's values, what is decayed, clipping, and groups; AdamW against its formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssmjax.training.optim import NO_DECAY, ParameterGroup, adamw, decay_mask, warmup_cosine

EXAMPLES = {
    "bias": ["bias", "conv_bias", "dt_bias"],
    "norm": ["norm", "norm_f", "norm1", "layernorm", "rms_norm", "bn2", "scale"],
    "A": ["A", "A_log", "A_b_log", "A_real", "A_imag", "log_A_real", "Lambda_re", "nu_log", "theta_log"],
    "D": ["D", "D_b"],
    "dt": ["dt", "dt_bias", "dt_proj", "log_dt", "inv_dt", "log_step", "gamma_log"],
    "position and class embedding": [
        "pos_embed",
        "pos_embedding",
        "position_embed",
        "cls_token",
        "cls_token_head",
        "dist_token",
    ],
    "layer scale": ["gamma", "gamma_1", "layer_scale", "ls1"],
}
DECAYED = ["kernel", "embedding", "weight", "in_proj", "x_proj", "out_proj", "conv1d", "patch_embed", "head", "B", "C"]


def test_the_table_has_an_example_of_each_kind():
    assert EXAMPLES.keys() == NO_DECAY.keys()


@pytest.mark.parametrize("name", sorted({name for names in EXAMPLES.values() for name in names}))
def test_not_decayed(name):
    params = {"layers": {"mixer": {name: 0}}, f"layers.0.{name}": 0, name: {"kernel": 0}, "head.kernel": 0}
    assert decay_mask(params) == {
        "layers": {"mixer": {name: False}},
        f"layers.0.{name}": False,
        name: {"kernel": False},
        "head.kernel": True,
    }


@pytest.mark.parametrize("name", DECAYED)
def test_decayed(name):
    assert decay_mask({name: 0, f"layers.mixer.{name}.kernel": 0}) == {name: True, f"layers.mixer.{name}.kernel": True}


def test_schedule_values():
    schedule = warmup_cosine(2.0, 110, 10, 0.2)
    assert [float(schedule(step)) for step in (0, 5, 10)] == pytest.approx([0.0, 1.0, 2.0])
    for step in (10, 35, 60, 110, 200):
        progress = min((step - 10) / 100, 1.0)
        assert float(schedule(step)) == pytest.approx(0.2 + 1.8 * (1 + np.cos(np.pi * progress)) / 2, rel=1e-5)
    assert float(warmup_cosine(2.0, 10)(0)) == 2.0


def test_the_longest_warmup():
    """It may take all steps but the last, in which the peak is reached."""
    schedule = warmup_cosine(2.0, 10, 9)
    assert [float(schedule(step)) for step in (0, 8, 9)] == pytest.approx([0.0, 2.0 * 8 / 9, 2.0])
    assert float(warmup_cosine(2.0, 1, 0)(0)) == 2.0
    for steps in (10, 1):
        with pytest.raises(ValueError, match=f"at least 0 and less than steps={steps}, got {steps}"):
            warmup_cosine(2.0, steps, steps)


def test_two_steps_of_the_formula():
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}
    grads = [
        {"kernel": jnp.array([0.3, 0.1]), "bias": jnp.array([-0.2])},
        {"kernel": jnp.array([-0.5, 0.2]), "bias": jnp.array([0.1])},
    ]
    optimizer = adamw(0.1, steps=4, weight_decay=0.5, clip_norm=0.4)
    state, got = optimizer.init(params), params
    want = {name: np.asarray(x, np.float64) for name, x in params.items()}
    m, v = ({name: np.zeros_like(x) for name, x in want.items()} for _ in range(2))
    for t, raw in enumerate(grads, 1):
        updates, state = optimizer.update(raw, state, got)
        got = optax.apply_updates(got, updates)
        norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in raw.values()))
        rate = 0.1 * (1 + np.cos(np.pi * (t - 1) / 4)) / 2
        for name, value in want.items():
            g = np.asarray(raw[name], np.float64) * min(1.0, 0.4 / norm)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            direction = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
            value -= rate * (direction + (0.5 if name == "kernel" else 0.0) * value)
    chex.assert_trees_all_close(got, jax.tree.map(np.float32, want), rtol=1e-5)


def test_groups_have_their_own_rate_and_decay():
    params = {"mixer.A_log": jnp.ones(2), "mixer.kernel": jnp.ones(2), "mixer.B": jnp.ones(2), "bias": jnp.ones(2)}
    groups = [ParameterGroup("A_log|log_dt", 0.001), ParameterGroup("B", 0.01, weight_decay=0.5)]
    optimizer = adamw(0.1, steps=10, weight_decay=0.2, clip_norm=None, groups=groups)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    want = {"mixer.A_log": -0.001, "mixer.B": -0.01 * 1.5, "mixer.kernel": -0.1 * 1.2, "bias": -0.1}
    for name, value in want.items():
        np.testing.assert_allclose(updates[name], value, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"peak": -1.0, "steps": 10}, "peak must be a finite number, at least 0, got -1.0"),
        ({"peak": float("nan"), "steps": 10}, "peak must be a finite number, at least 0, got nan"),
        ({"peak": 1.0, "steps": 2.5}, "steps must be a positive int, got 2.5"),
        ({"peak": 1.0, "steps": -1}, "steps must be a positive int, got -1"),
        (
            {"peak": 1.0, "steps": 9, "clip_norm": -1.0},
            "clip_norm must be a positive, finite number, got -1.0. None does",
        ),
        ({"peak": 1.0, "steps": 9, "b1": 1.0}, "b1 must be less than 1, got 1.0"),
        ({"peak": 1.0, "steps": 9, "b2": float("nan")}, "b2 must be a finite number, at least 0, got nan"),
        ({"peak": 1.0, "steps": 9, "eps": -1.0}, "eps must be a finite number, at least 0, got -1.0"),
        ({"peak": 1.0, "steps": 9, "groups": [("B", 1e-3)]}, "groups must be a sequence of ParameterGroup, got"),
        ({"peak": 1.0, "steps": 9, "groups": ParameterGroup("B", 1e-3)}, "groups must be a sequence of ParameterGroup"),
        ({"peak": 1.0, "steps": 10, "warmup_steps": 10}, "warmup_steps must be at least 0 and less than steps=10"),
        (
            {"peak": 1.0, "steps": 10, "weight_decay": -0.1},
            "weight_decay must be a finite number, at least 0, got -0.1",
        ),
    ],
)
@pytest.mark.usefixtures("as_a_user")
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        adamw(**options)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    "arguments, message",
    [
        (("(", 1e-3), r"ParameterGroup: pattern must be a regular expression, got '\('"),
        ((None, 1e-3), "ParameterGroup: pattern must be a regular expression, got None"),
        (("B", -1.0), "ParameterGroup: peak must be a finite number, at least 0, got -1.0"),
        (("B", 1.0, float("nan")), "ParameterGroup: weight_decay must be a finite number, at least 0, got nan"),
    ],
)
def test_errors_of_groups(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParameterGroup(*arguments)
