"""Records are exact, cut where a run resumes, and readable after a crash; reports hold plain values only."""

import json
import math
import subprocess

import numpy as np
import pytest

from ssmjax.training import report as report_module
from ssmjax.training.recorder import Recorder, read_records
from ssmjax.training.report import environment, make_report, render_table, summarize, write_report


def test_what_is_written_is_read(tmp_path):
    loss = float(np.float32(0.1) / 3)
    with Recorder(tmp_path / "log" / "run.jsonl") as recorder:
        recorder.write("train", 1, {"loss": loss, "bad": math.nan})
        # Before it is closed: a killed process has no time to.
        (record,) = read_records(tmp_path / "log" / "run.jsonl")
    assert record["loss"] == loss and math.isnan(record["bad"])
    line = (tmp_path / "log" / "run.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["bad"] is None


def test_a_resumed_run_drops_what_comes_after(tmp_path):
    path = tmp_path / "run.jsonl"
    with Recorder(path) as recorder:
        for step in range(1, 7):
            recorder.write("train", step, {"loss": 1 / step})
            recorder.write("eval", step, {"accuracy": 0.5})
    with open(path, "a") as file:
        file.write('{"kind": "train", "step": 7, "lo')  # cut off by a crash
    with Recorder(path, start=4) as recorder:
        assert [record["step"] for record in recorder.of_kind("eval")] == [1, 2, 3, 4]
        recorder.write("train", 5, {"loss": 9.0})
    assert [(record["kind"], record["step"]) for record in read_records(path)] == [
        *((kind, step) for step in range(1, 5) for kind in ("train", "eval")),
        ("train", 5),
    ]


def test_summary_and_table():
    report = make_report(
        "demo",
        command="python -m experiments.demo",
        config={"width": np.int64(3), "size": (2, 2)},
        runs=[
            {"seed": 0, "seconds": 10, "metrics": {"accuracy": np.float32(0.5)}},
            {"seed": 1, "seconds": 12, "metrics": {"accuracy": 0.75}},
        ],
        data={"name": "digits", "confusion": np.eye(2, dtype=np.int32), "nothing": math.nan},
    )
    assert report["metrics"]["accuracy"] == {
        "mean": 0.625,
        "spread": pytest.approx(0.125 * 2**0.5),
        "values": [0.5, 0.75],
    }
    assert report["seeds"] == [0, 1] and report["config"] == {"width": 3, "size": [2, 2]}
    assert report["data"] == {"name": "digits", "confusion": [[1, 0], [0, 1]], "nothing": None}
    assert report["versions"]["jax"] and report["device"]["platform"] == "cpu"
    assert render_table(report).splitlines()[1].split() == ["accuracy", "0.6250", "0.1768", "2"]
    assert summarize([2.0])["spread"] is None


def test_a_report_is_strict_json(tmp_path):
    write_report(tmp_path / "new" / "demo.json", {"value": math.inf, "array": np.zeros(2)})
    assert json.loads((tmp_path / "new" / "demo.json").read_text(), parse_constant=pytest.fail) == {
        "value": None,
        "array": [0.0, 0.0],
    }


@pytest.mark.parametrize("runs", [[], [{"metrics": {"a": 1}}, {"metrics": {"b": 1}}]])
def test_runs_that_do_not_fit_together(runs):
    with pytest.raises(ValueError, match="at least one run, all with the same metrics"):
        make_report("demo", command="", config={}, runs=runs)


def test_the_commit_of_a_clone_and_of_no_clone(tmp_path, monkeypatch):
    copy = tmp_path / "report.py"
    copy.write_text("")
    monkeypatch.setattr(report_module, "__file__", str(copy))
    assert environment()["commit"] is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    assert environment()["commit"] is None  # someone else's clone, in which this file is not tracked
    git("add", "report.py")
    git("commit", "-m", "first")
    assert len(environment()["commit"]) == 40
    copy.write_text("changed")
    assert environment()["commit"].endswith("-dirty")
