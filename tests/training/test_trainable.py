"""Parameters that are not trained, the progress that `prepare` sees, and the scale of a float16 loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ssmjax.training.evaluate import evaluate
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.state import split_trainable
from tests.training.toy import batch_fn, loss, mlp, state_bytes, train, without_rate

LAST = nnx.PathContains("last")


def names(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_frozen_parameters_are_in_no_state():
    model = mlp()
    result = train(steps=3, trainable=LAST)
    assert set(result.state.params) == set(result.state.ema) == {"last.kernel", "last.bias"}
    assert not any("first" in name for name in names(result.state.opt_state))
    assert any("last" in name for name in names(result.state.opt_state))
    assert {"norm.mean", "norm.var"} <= set(result.state.rest), "statistics are variables, not parameters"
    for trained in (result.model, result.ema_model):
        np.testing.assert_array_equal(trained.first.kernel[...], model.first.kernel[...])
        assert (trained.last.kernel[...] != model.last.kernel[...]).any()


def test_a_filter_may_be_a_function():
    layout, params, _, frozen = split_trainable(mlp(), lambda path, variable: path[-1] == "bias")
    assert set(params) == {"first.bias", "norm.bias", "last.bias"}
    assert set(frozen) == {"first.kernel", "norm.scale", "last.kernel"}
    assert layout.frozen_names == tuple(frozen)


def test_a_filter_that_matches_nothing_is_refused(as_a_user):
    with pytest.raises(ValueError, match="trainable must be a filter that matches one of first.bias"):
        train(steps=1, trainable=nnx.PathContains("lsat"))


def test_frozen_parameters_are_not_in_checkpoints_and_a_run_resumes(tmp_path):
    whole = train(steps=6, trainable=LAST)
    train(steps=6, trainable=LAST, checkpoint_dir=str(tmp_path), time_limit=1e-9)
    second = train(steps=6, trainable=LAST, checkpoint_dir=str(tmp_path))
    assert second.resumed_from == 1
    assert state_bytes(second.state) == state_bytes(whole.state)
    assert without_rate(second.train) == without_rate(whole.train)
    stored = " ".join(str(path) for path in tmp_path.rglob("*"))
    assert "first" not in stored


def test_the_whole_model_is_evaluated():
    seen = []
    train(steps=1, trainable=LAST, eval_fn=lambda model, step: seen.append(model(jnp.ones((1, 4))).shape) or {})
    assert seen == [(1, 3)]


# ----------------------------------------------------------------------------------------------------------- progress


def early(batch, key, train, progress):
    """An augmentation for the first half of the training."""
    return {**batch, "x": jnp.where(progress < 0.5, 0 * batch["x"], batch["x"])}


def test_prepare_sees_the_progress():
    def sums(model, batch, key):
        value, _ = loss(model, batch, key)
        return value, {"size": jnp.abs(batch["x"]).sum()}

    config = FitConfig(progress=False, log_every=1)
    result = fit(mlp(), sums, batch_fn, steps=4, optimizer=optax.sgd(0.01), config=config, prepare=early)
    assert [record["size"] > 0 for record in result.train] == [False, False, True, True]


def test_the_progress_of_an_evaluation_is_one():
    def metric(model, batch):
        return {"count": jnp.array(1), "size": batch["x"].sum()}

    batches = [{"x": np.ones((2, 4), np.float32)}]
    assert evaluate(mlp(), batches, metric, prepare=early)["size"] == 8


# --------------------------------------------------------------------------------------------------------- loss scale


class Half(nnx.Module):
    """A model in float16 whose gradients are smaller than float16 can hold."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.weight = nnx.Param(jnp.array([0.5, -0.5]))

    def __call__(self, x):
        y = x.astype(self.dtype) * self.weight[...].astype(self.dtype)[None]
        return (y * jnp.asarray(2.0**-12, self.dtype)).astype(jnp.float32)


def tiny(model, batch, key):
    return jnp.mean(model(batch["x"]) * batch["w"]) * 2.0**-13, {}


def half_run(dtype=jnp.float16, *, batches=None, steps=3, **options):
    batch = {"x": np.ones((2, 2), np.float32), "w": np.ones((2, 2), np.float32)}
    config = FitConfig(progress=False, log_every=1, **options)
    return fit(Half(dtype), tiny, batches or (lambda step: batch), steps=steps, optimizer=optax.sgd(1e4), config=config)


def test_float16_has_a_scale_by_default_and_small_gradients_survive():
    before = np.array([0.5, -0.5])
    want = np.asarray(half_run(jnp.float32).model.weight[...]) - before
    assert (want != 0).all()
    np.testing.assert_allclose(np.asarray(half_run().model.weight[...]) - before, want, rtol=1e-3)
    unscaled = half_run(loss_scaling=False)
    np.testing.assert_array_equal(unscaled.model.weight[...], before)
    assert unscaled.state.loss_scale is None and "loss_scale" not in unscaled.train[0]


def test_float32_has_none_unless_asked():
    assert half_run(jnp.float32).state.loss_scale is None
    assert half_run(jnp.float32, loss_scaling=True).train[0]["loss_scale"] == 2.0**15


def test_an_overflow_halves_the_scale_and_is_no_bad_step():
    """Weights of 2 ** 19 in the loss overflow float16 in the backward pass at a scale of 2 ** 15."""

    def batches(step):
        big = 2.0**19 if step < 6 else 1.0
        return {"x": np.ones((2, 2), np.float32), "w": np.full((2, 2), big, np.float32)}

    result = half_run(batches=batches, steps=8, max_bad_steps=2)
    scales = [record["loss_scale"] for record in result.train]
    assert scales[:3] == [2.0**15, 2.0**14, 2.0**13]
    assert scales[-1] == scales[-2] < 2.0**15 and result.train[-1]["bad_steps"] == 0
    assert (np.asarray(result.model.weight[...]) != [0.5, -0.5]).all()


def test_the_scale_grows_after_many_finite_steps(monkeypatch):
    monkeypatch.setattr("ssmjax.training.step.GROWTH_STEPS", 3)
    scales = [record["loss_scale"] for record in half_run(steps=7).train]
    assert scales == [2.0**15] * 3 + [2.0**16] * 3 + [2.0**17]


def test_a_loss_that_is_not_finite_is_a_bad_step():
    from ssmjax.training.guards import TrainingDiverged

    bad = {"x": np.ones((2, 2), np.float32), "w": np.full((2, 2), np.nan, np.float32)}
    with pytest.raises(TrainingDiverged):
        half_run(batches=lambda step: bad, steps=6, max_bad_steps=2)


def test_a_scaled_run_resumes_to_the_same_bits(tmp_path):
    whole = half_run(steps=6)
    half_run(steps=6, checkpoint_dir=str(tmp_path), time_limit=1e-9)
    second = half_run(steps=6, checkpoint_dir=str(tmp_path))
    assert second.resumed_from == 1 and state_bytes(second.state) == state_bytes(whole.state)
