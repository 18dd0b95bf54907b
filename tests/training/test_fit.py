"""The loop: it learns, resumes to the same bits, compiles once, and tells what is wrong."""

import contextlib
import logging
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ssmjax.models.registry import build
from ssmjax.models.sequence_classifier import SequenceConfig
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.recorder import read_records
from ssmjax.training.state import commit, split_model
from ssmjax.training.step import init_state, make_step
from tests.layers import quick
from tests.training.toy import batch_fn, loss, mlp, state_bytes, train, without_rate


@contextlib.contextmanager
def counted_compilations():
    """Counts what XLA compiles."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Finished XLA compilation"):
                messages.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield messages
    finally:
        logger.removeHandler(handler)


def test_the_loss_goes_down_and_the_given_model_is_left_alone():
    model = mlp()
    before = jax.tree.map(np.array, nnx.state(model))
    result = fit(model, loss, batch_fn, steps=150, optimizer=optax.adam(0.02), config=FitConfig(progress=False))
    assert [record["step"] for record in result.train] == [1, 50, 100, 150]
    assert result.train[-1]["loss"] < 0.2 * result.train[0]["loss"]
    chex.assert_trees_all_equal(jax.tree.map(np.array, nnx.state(model)), before)
    chex.assert_tree_all_finite(nnx.state(result.model))
    assert result.ema_model is None
    assert (result.interrupted, result.exit_code, result.resumed_from) == (False, 0, 0)


def test_the_time_limit_saves_and_the_next_call_goes_on(tmp_path):
    whole = train(steps=6)
    assert whole.finished
    first = train(steps=6, checkpoint_dir=str(tmp_path), time_limit=1e-9)
    assert (first.finished, first.interrupted, int(first.state.step)) == (False, False, 1)
    second = train(steps=6, checkpoint_dir=str(tmp_path))
    assert (second.finished, second.resumed_from) == (True, 1)
    assert state_bytes(second.state) == state_bytes(whole.state)
    with pytest.raises(ValueError, match="time_limit must be a positive, finite number"):
        FitConfig(time_limit=0.0)


def test_batch_statistics_are_carried():
    result = train(steps=5)
    assert np.abs(np.asarray(result.state.rest["norm.mean"])).max() > 0
    np.testing.assert_array_equal(result.model.norm.mean[...], result.state.rest["norm.mean"])


def test_the_moving_average_follows_its_formula(tmp_path):
    first = train(steps=1, checkpoint_dir=str(tmp_path)).state
    initial = {name: np.asarray(x) for name, x in split_model(mlp())[1].items()}
    second = train(steps=2, checkpoint_dir=str(tmp_path)).state
    for name, start in initial.items():
        want = 0.9 * start + 0.1 * np.asarray(first.params[name])
        np.testing.assert_allclose(first.ema[name], want, rtol=1e-6, atol=1e-7)
        want = 0.9 * want + 0.1 * np.asarray(second.params[name])
        np.testing.assert_allclose(second.ema[name], want, rtol=1e-6, atol=1e-7)


def test_evaluation_gets_the_moving_average_and_is_recorded():
    seen = {}

    def eval_fn(model, step):
        seen[step] = np.array(model.last.kernel[...])
        return {"score": step * 2, "table": np.eye(2)}

    result = train(steps=5, eval_every=2, eval_fn=eval_fn)
    assert result.evals == [{"kind": "eval", "step": step, "score": 2 * step} for step in (2, 4, 5)]
    np.testing.assert_array_equal(seen[5], result.state.ema["last.kernel"])
    np.testing.assert_array_equal(seen[5], result.ema_model.last.kernel[...])


def test_prepare_runs_in_the_step_with_its_own_key():
    keys = []

    def prepare(batch, key, train):
        assert train
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return {**batch, "x": batch["x"] * 0.0}

    result = train(steps=3, prepare=prepare)
    jax.effects_barrier()
    assert len(set(keys)) == 3
    np.testing.assert_array_equal(result.state.params["first.kernel"].shape, (4, 8))


@pytest.mark.parametrize("cut", quick.first([5, 1, 7]))
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, cut):
    whole = train(checkpoint_dir=str(tmp_path / "whole"), save_every=3)
    train(steps=cut, checkpoint_dir=str(tmp_path / "cut"), save_every=3)
    result = train(checkpoint_dir=str(tmp_path / "cut"), save_every=3)
    assert result.resumed_from == cut
    assert state_bytes(result.state) == state_bytes(whole.state)
    assert without_rate(result.train) == without_rate(whole.train)
    assert without_rate(read_records(tmp_path / "cut" / "metrics.jsonl")) == without_rate(result.train)


def test_a_finished_run_is_only_loaded(tmp_path):
    first = train(checkpoint_dir=str(tmp_path))
    again = train(checkpoint_dir=str(tmp_path))
    assert state_bytes(again.state) == state_bytes(first.state)
    assert without_rate(again.train) == without_rate(first.train)
    assert again.seconds == pytest.approx(first.seconds, abs=1.0)


def test_fresh_starts_anew(tmp_path):
    train(steps=4, checkpoint_dir=str(tmp_path))
    result = train(steps=6, checkpoint_dir=str(tmp_path), fresh=True)
    assert result.resumed_from == 0
    assert [record["step"] for record in result.train] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_returns(tmp_path, number, code):
    def signalling(step):
        # From the thread that makes batches, so that the step it arrives in may vary.
        if step == 5:
            signal.raise_signal(number)
        return batch_fn(step)

    before = signal.getsignal(number)
    result = train(batches=signalling, checkpoint_dir=str(tmp_path))
    assert result.interrupted and result.exit_code == code
    assert signal.getsignal(number) is before
    done = int(result.state.step)
    assert 4 <= done <= 6
    assert [record["step"] for record in result.train] == list(range(1, done + 1))
    resumed = train(checkpoint_dir=str(tmp_path))
    assert resumed.resumed_from == done
    assert state_bytes(resumed.state) == state_bytes(train().state)
    assert without_rate(resumed.train) == without_rate(train().train)


def test_it_runs_outside_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(train(steps=3)))
    thread.start()
    thread.join()
    assert results[0].train[-1]["step"] == 3


def test_more_steps_compile_nothing_more(tmp_path):
    def compiled(steps, folder):
        with counted_compilations() as messages:
            train(steps=steps, checkpoint_dir=str(folder), save_every=2)
        return sum("jit(step)" in message for message in messages), len(messages)

    train(steps=4, checkpoint_dir=str(tmp_path / "warm"), save_every=2)  # compiles the small operations around it
    train(steps=6, checkpoint_dir=str(tmp_path / "warm"), save_every=2)
    assert compiled(2, tmp_path / "run")[0] == 1
    assert compiled(12, tmp_path / "run") == (1, 1)  # after a resume


def test_the_seed_is_not_compiled_in():
    texts = []
    for seed in (0, 1):
        layout, params, rest = split_model(mlp())
        state = commit(init_state(params, rest, optax.sgd(0.1), seed=seed, ema=False))
        texts.append(jax.jit(make_step(layout, loss, optax.sgd(0.1))).lower(state, batch_fn(0)).as_text())
    assert texts[0] == texts[1]


def test_profile_and_tensorboard_write_files(tmp_path):
    train(steps=4, profile_dir=str(tmp_path / "profile"), tensorboard_dir=str(tmp_path / "board"))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))


def test_the_progress_bar_tells_the_loss_and_the_rate(capsys):
    train(steps=4, progress=True, unit="images")
    shown = capsys.readouterr().err
    assert "4/4" in shown and "loss 1.4" in shown and "images/s" in shown


class TestErrors:
    def test_another_batch_shape(self):
        def ragged(step):
            return jax.tree.map(lambda x: x[: 8 if step == 2 else 16], batch_fn(step))

        with pytest.raises(ValueError, match=r"batch_fn\(2\) returned .*\(8, 4\) float32.*Every batch must be alike"):
            train(batches=ragged)

    def test_the_error_of_a_batch(self):
        def failing(step):
            if step == 2:
                raise OSError("disk gone")
            return batch_fn(step)

        with pytest.raises(OSError, match="disk gone"):
            train(batches=failing)

    def test_a_loss_per_example(self):
        with pytest.raises(ValueError, match=r"the loss that `loss` returns must be a scalar, got \(16,\) float32"):
            fit(mlp(), lambda m, b, k: (m(b["x"]).sum(1), {}), batch_fn, steps=1, optimizer=optax.sgd(0.1))

    def test_new_variables(self):
        def sowing(model, batch, key):
            model.seen = nnx.Intermediate(batch["x"])
            return jnp.mean(model(batch["x"])), {}

        with pytest.raises(ValueError, match=r"made or removed the variables \['seen'\]"):
            fit(mlp(), sowing, batch_fn, steps=1, optimizer=optax.sgd(0.1), config=FitConfig(progress=False))

    def test_other_settings_than_the_checkpoint(self, tmp_path):
        train(steps=2, checkpoint_dir=str(tmp_path), run_config={"width": (4, 8)})
        train(steps=2, checkpoint_dir=str(tmp_path), run_config={"width": (4, 8)})
        with pytest.raises(ValueError, match=r"other settings \(seed: 0 there, 1 now; width: \[4, 8\] there, 9 now\)"):
            train(steps=2, checkpoint_dir=str(tmp_path), run_config={"width": 9}, seed=1)

    def test_another_model_than_the_checkpoint(self, tmp_path):
        train(steps=2, checkpoint_dir=str(tmp_path))
        with pytest.raises(ValueError, match="another model or optimizer: .*not in the checkpoint"):
            model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
            config = FitConfig(checkpoint_dir=str(tmp_path), ema_decay=0.9, progress=False)
            fit(model, loss, batch_fn, steps=3, optimizer=optax.sgd(0.1), config=config)

    @pytest.mark.parametrize(
        "field, value",
        [
            ("log_every", 0),
            ("log_every", 2.5),
            ("save_every", -1),
            ("keep", 0),
            ("max_bad_steps", 0),
            ("ema_decay", 1.0),
            ("ema_decay", float("nan")),
            ("time_limit", float("nan")),
            ("time_limit", -1.0),
            ("time_limit", 0.0),
            ("seed", 2.5),
            ("ema_decay", "1"),
            ("fresh", "no"),
            ("progress", 1),
        ],
    )
    @pytest.mark.usefixtures("as_a_user")
    def test_config(self, field, value):
        with pytest.raises(ValueError, match=rf"FitConfig: {field} must be .*got {value!r}"):
            FitConfig(**{field: value})

    def test_no_steps(self):
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            train(steps=0)


def test_a_model_of_another_discretization_does_not_go_on(tmp_path):
    """By `fit` itself: the settings of the model lie beside the state, and are compared before the first step."""

    def model(rule):
        config = SequenceConfig("s5", d_model=4, d_state=4, depth=1, layer_options={"discretization": rule})
        return quick.made(lambda: build("sequence_classifier", config))

    def run(model, steps):
        return fit(
            model,
            lambda model, batch, key: (jnp.mean(model(batch["x"]) ** 2), {}),
            lambda step: {"x": np.ones((2, 6, 1), np.float32)},
            steps=steps,
            optimizer=optax.sgd(0.1),
            config=FitConfig(checkpoint_dir=str(tmp_path), progress=False),
        )

    run(model("zoh"), 1)
    with pytest.raises(ValueError, match="discretization: 'zoh' there, 'bilinear' now"):
        run(model("bilinear"), 2)
    assert run(model("zoh"), 2).resumed_from == 1
