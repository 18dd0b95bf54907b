"""Bad steps change nothing; too many end the training; signals are noted and handlers come back."""

import json
import logging
import signal
import types

import chex
import jax
import numpy as np
import pytest

from ssmjax.checkpoints.store import CheckpointStore
from ssmjax.models.sequence_classifier import SequenceConfig
from ssmjax.training.guards import StopSignals, TrainingDiverged
from ssmjax.training.optim import adamw
from ssmjax.training.settings import check_settings, model_settings
from ssmjax.training.state import commit, split_model
from ssmjax.training.step import init_state, make_step
from tests.training.toy import loss, mlp, state_bytes, train, with_nan


def learned(state) -> dict[str, bytes]:
    """The bytes of a state without its counters."""
    return {name: x for name, x in state_bytes(state).items() if name not in (".step", ".bad_steps", ".bad_streak")}


def run_steps(batches, steps, max_bad_steps=10):
    """The states after 0, 1, ... steps, and the metrics of the last."""
    layout, params, rest = split_model(mlp())
    optimizer = adamw(0.01, steps=20)
    states = [commit(init_state(params, rest, optimizer, seed=0, ema=True))]
    step = jax.jit(make_step(layout, loss, optimizer, ema_decay=0.9, max_bad_steps=max_bad_steps))
    for i in range(steps):
        state, metrics = step(states[-1], batches(i))
        states.append(state)
    return states, metrics


@pytest.mark.parametrize("bad", [(3,), (1, 2, 5), (0, 6)])
@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_a_bad_step_changes_nothing_but_the_counters(bad, fill):
    states, metrics = run_steps(with_nan(*bad, fill=fill), 7)
    for step in range(7):
        assert (learned(states[step]) == learned(states[step + 1])) == (step in bad)
    assert int(states[-1].step) == 7
    assert int(metrics["bad_steps"]) == len(bad)
    assert int(metrics["bad_streak"]) == (6 in bad)
    chex.assert_tree_all_finite((states[-1].params, states[-1].rest, states[-1].opt_state, states[-1].ema))


def test_the_state_is_frozen_when_it_has_diverged():
    states, metrics = run_steps(with_nan(1, 2), 5, max_bad_steps=2)
    assert int(metrics["bad_streak"]) == 4
    assert learned(states[5]) == learned(states[1])


def test_random_bad_steps_are_each_skipped():
    bad = np.random.default_rng(0).choice(40, 12, replace=False).tolist()
    result = train(steps=40, batches=with_nan(*bad), max_bad_steps=40)
    assert [record["step"] - 1 for record in result.train if not np.isfinite(record["loss"])] == sorted(bad)
    assert int(result.state.bad_steps) == 12
    # The good steps do what they would have done alone; the keys differ, so only their number can be compared.
    assert int(result.state.opt_state[1][0].count) == 28


@pytest.mark.parametrize("log_every", [1, 4, 50])
def test_too_many_in_a_row_end_the_training(tmp_path, log_every):
    good = train(steps=6, log_every=log_every).state
    bad = with_nan(2, *range(6, 30))  # one that is survived, then all
    with pytest.raises(TrainingDiverged, match=r"not finite in 3 steps in a row, from step 7 on") as raised:
        train(steps=30, batches=bad, max_bad_steps=3, log_every=log_every, checkpoint_dir=str(tmp_path), save_every=5)
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert report == json.loads(json.dumps(raised.value.report))
    assert (report["first_bad_step"], report["bad_steps_in_a_row"]) == (7, 3)
    # Nothing was saved after it.
    with CheckpointStore(tmp_path) as store:
        assert store.latest_step() == 5
        state, _, _ = store.restore(good)
    assert int(state.bad_steps) == 1


def test_a_second_signal_ends_the_process_as_usual():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    try:
        with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.received == signal.SIGINT
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def settings(**fields):
    """What a checkpoint of such a model remembers, after its way through JSON."""
    config = SequenceConfig(**({"layer": "s4d"} | fields))
    return json.loads(json.dumps(model_settings(types.SimpleNamespace(config=config))))


def test_parameters_made_for_another_discretization_are_refused():
    """The shapes are equal, so that nothing else would tell."""
    zoh, bilinear = settings(), settings(layer_options={"discretization": "bilinear"})
    check_settings("run", zoh, settings(layer_options={"discretization": "zoh"}))  # the default by its name
    with pytest.raises(ValueError, match="fit: the parameters in run .*discretization: 'zoh' there, 'bilinear' now"):
        check_settings("run", zoh, bilinear)
    with pytest.raises(ValueError, match="l_max: 16 there, 32 now"):
        check_settings("run", settings(layer="s4", l_max=16), settings(layer="s4", l_max=32))


def test_other_settings_of_a_resumed_model_are_said_once(caplog):
    with caplog.at_level(logging.INFO, "ssmjax"):
        check_settings("run", settings(), settings())
        check_settings("run", {}, settings())  # a checkpoint that an older version wrote
        assert caplog.text == ""
        check_settings("run", settings(dropout=0.1), settings(dropout=0.2, remat=True))
    assert "dropout: 0.1 there, 0.2 now; remat: False there, True now" in caplog.text and len(caplog.records) == 1
