"""Killed at random moments and started again, a run ends with the bits of one that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reliability.kill_target import SAVE_EVERY, STEPS

ROOT = Path(__file__).parents[2]


def start(directory: Path, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.reliability.kill_target", str(directory), str(cache)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def records(directory: Path) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{n: x for n, x in json.loads(line).items() if n != "examples_per_second"} for line in lines]


def recorded_steps(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b'"train"') if path.exists() else 0


def wait_for_step(process: subprocess.Popen, directory: Path, step: int) -> None:
    """Returns when the run has recorded so many steps, or has ended."""
    deadline = time.monotonic() + 300
    while process.poll() is None and recorded_steps(directory) < step:
        assert time.monotonic() < deadline, f"no progress beyond step {recorded_steps(directory)}"
        time.sleep(0.001)


def assert_equals_the_reference(directory: Path, reference: Path) -> None:
    assert json.loads((directory / "final.json").read_text()) == json.loads((reference / "final.json").read_text())
    got, want = records(directory), records(reference)
    assert [record["step"] for record in got if record["kind"] == "train"] == list(range(1, STEPS + 1))
    assert got == want


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache) -> Path:
    """A run that nothing interrupts; it also fills the cache."""
    directory = tmp_path_factory.mktemp("reference")
    finish(start(directory, cache))
    return directory


def kill_and_restart(directory: Path, cache: Path, kills: int, seed: int) -> int:
    """Kills and restarts a run until it has been killed so many times or ends; returns how often it was killed."""
    rng = random.Random(seed)
    done = 0
    while done < kills:
        process = start(directory, cache)
        if rng.random() < 0.15:
            time.sleep(rng.uniform(0.0, 4.0))  # most likely while it starts
        else:
            # In a step, a save or an evaluation, somewhere in the next part of the way, short of its end.
            remaining = max(STEPS - recorded_steps(directory), 1)
            wait_for_step(
                process, directory, recorded_steps(directory) + rng.randint(1, 1 + remaining // (kills - done + 1))
            )
            time.sleep(rng.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0
            return done
        done += 1
    finish(start(directory, cache))
    return done


@pytest.mark.reliability
def test_two_kills(reference, cache, tmp_path):
    assert kill_and_restart(tmp_path, cache, 2, seed=0) == 2
    assert_equals_the_reference(tmp_path, reference)


@pytest.mark.slow
@pytest.mark.reliability
def test_many_kills(reference, cache, tmp_path):
    """At least 20 kills; `SSMJAX_KILLS` asks for more."""
    wanted, done, run = int(os.environ.get("SSMJAX_KILLS", "20")), 0, 0
    while done < wanted:
        directory = tmp_path / str(run)
        done += kill_and_restart(directory, cache, min(8, wanted - done), seed=run + 1)
        assert_equals_the_reference(directory, reference)
        run += 1
    print(f"{done} kills in {run} runs, 0 mismatches")


@pytest.mark.slow
@pytest.mark.reliability
def test_sigterm_saves_the_current_step(reference, cache, tmp_path):
    process = start(tmp_path, cache)
    wait_for_step(process, tmp_path, 33)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    saved = max(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert saved == recorded_steps(tmp_path) >= 33 > SAVE_EVERY
    finish(start(tmp_path, cache))
    assert_equals_the_reference(tmp_path, reference)
