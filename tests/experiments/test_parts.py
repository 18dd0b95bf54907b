"""Parts of an experiment: done once, shared by processes, and put together by the one that ends last."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.shared import language, parts


@pytest.fixture
def config(tmp_path):
    return language.Config(models=("a", "b"), seeds=2, runs_dir=tmp_path)


def work(calls):
    def run(kind, seed, part):
        calls.append((kind, seed))
        return {"metrics": {f"{kind}_x": 10 * seed}, "seconds": 1.5, "note": kind}

    return run


def test_parts_are_done_once_and_put_together(config):
    calls = []
    runs, rest = parts.run_parts("demo", config, config.models, work(calls))
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert runs == [{"seed": s, "seconds": 3.0, "metrics": {"a_x": 10 * s, "b_x": 10 * s}} for s in (0, 1)]
    assert rest["b_1"] == {"note": "b"}
    # Another choice of models takes what there is of it, other settings do not.
    fewer = dataclasses.replace(config, models=("b",), seeds=3)
    assert len(parts.run_parts("demo", fewer, fewer.models, work(calls))[0]) == 3 and calls[4:] == [("b", 2)]
    parts.run_parts("demo", dataclasses.replace(config, steps=7), ("a",), work(calls))
    assert calls[5:] == [("a", 0), ("a", 1)]


def test_minutes_that_are_over_end_the_process(config, capsys):
    calls = []
    with pytest.raises(SystemExit) as end:
        parts.run_parts("demo", dataclasses.replace(config, minutes=1e-9), config.models, work(calls))
    assert end.value.code == 0 and not calls and "the same command goes on" in capsys.readouterr().out


def test_a_part_of_another_process_is_left_to_it(config, capsys):
    pytest.importorskip("fcntl")
    parts.run_parts("demo", config, ("b",), work([]))
    (home,) = Path(config.runs_dir).glob("demo-*")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(home / "a_0.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        calls = []
        with pytest.raises(SystemExit) as end:
            parts.run_parts("demo", config, config.models, work(calls))
        assert end.value.code == 0 and calls == [("a", 1)] and "With other processes: a_0." in capsys.readouterr().out
    finally:
        other.communicate(b"\n")
    assert len(parts.run_parts("demo", config, config.models, work(calls))[0]) == 2 and calls[1:] == [("a", 0)]
    assert json.loads((home / "a_0.json").read_text())["metrics"] == {"a_x": 0}


def test_a_smoke_run_leaves_nothing(config):
    calls = []
    for _ in range(2):
        parts.run_parts("demo", dataclasses.replace(config, smoke=True), config.models, work(calls))
    assert calls == [("a", 0), ("b", 0)] * 2 and not list(Path(config.runs_dir).iterdir())
