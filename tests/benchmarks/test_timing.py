"""Timing: a loop runs its function as often as it says, and records have the fields that the tables read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import models
from benchmarks.timing import back_to_back, in_loop, runs_a_sample, time_in_turns


def test_a_loop_runs_its_function_each_time():
    seen = []

    def function(x, y):
        jax.debug.callback(lambda value: seen.append(float(value)), x[0])
        return {"sum": x + y, "difference": x - y}

    x, y = jnp.full(3, 2.0), jnp.ones(3)
    total = in_loop(function, (x, y), 5)(x, y)
    jax.effects_barrier()
    assert seen == [2.0] * 5
    assert float(total) in (5 * 1.0, 5 * 3.0)  # the first entry of the first output, summed


def test_the_compiler_leaves_the_work_in_the_loop():
    x = jnp.ones((64, 64))
    text = in_loop(lambda x: jnp.sin(x) @ x, (x,), 7).as_text()
    body = text[text.index("body") :]
    assert "while" in text and ("dot" in body or "custom-call" in body)
    assert "sine" in body


def test_back_to_back_and_the_time_of_one_run():
    calls = []
    many = back_to_back(lambda x: calls.append(1) or x, 4)
    x = np.ones(2)
    times = time_in_turns({"many": many}, (x,), 3, {"many": 4})["many"]
    assert len(calls) == 4 * (3 + 1)
    assert times.least <= times.median
    assert runs_a_sample(lambda x: x, (x,)) == 1  # on a CPU


@pytest.mark.slow
def test_records_of_models(tmp_path):
    out = tmp_path / "cpu.json"
    out.write_text(json.dumps([{"op": "linear_scan"}, {"model": "vim_nano", "task": "infer"}]))
    config = models.Config(
        model=("vim_nano",), batch=2, img_size=8, depth=1, dtype="float32", rounds=2, peak_tflops=1.0, out=out
    )
    infer, train = models.main(config)
    assert (infer["task"], train["task"]) == ("infer", "train")
    for record in (infer, train):
        fields = {
            "model",
            "task",
            "batch",
            "size",
            "dtype",
            "ms",
            "per_second",
            "peak_gb",
            "peer_ms",
            "floor_ms",
            "spread",
        }
        assert fields <= set(record)
        assert record["size"] == "8x8x3" and record["per_second"] == pytest.approx(2000 / record["ms"], rel=1e-2)
    assert train["floor_ms"] == pytest.approx(3 * infer["floor_ms"], rel=1e-3)
    written = json.loads(out.read_text())
    assert len(written) == 4 and {"commit", "versions"} <= set(written[-1])
    models.main(config)
    assert len(json.loads(out.read_text())) == 4
