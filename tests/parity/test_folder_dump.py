"""Folder dumps: a fake family that returns the stored arrays passes, and fails whatever is changed or left out.

`folder_dump/llama_mha` is a reference dump of transformers' Llama without its weights.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.parity import harness
from tests.parity.comparison import margins

DUMP = Path(__file__).parent / "folder_dump" / "llama_mha"


@pytest.fixture
def check(monkeypatch):
    """Checks a folder, with a family whose arrays `change` alters."""

    def run(change=lambda arrays: None, *, folder=DUMP, inputs=("input_ids", "*_mask")) -> harness.Result:
        def fake(dump: harness.Dump):
            arrays = {name: x.copy() for name, x in dump.arrays.items() if name.startswith("out/")}
            change(arrays)
            return arrays

        monkeypatch.setitem(harness.families, "llama", fake)
        monkeypatch.setitem(harness.folder_inputs, "llama", inputs)
        return harness.check(folder, folder.name)

    return run


def test_the_stored_arrays_pass(check):
    result = check()
    assert result.passed, result.line()
    assert len(result.errors) == 10 and "  10 arrays  pass" in result.line()
    assert result.worst(["out/"]) == 0


def test_arrays_are_inputs_only_where_the_family_says_so(check):
    assert len(check(inputs=()).errors) == 13


def altered(name, index, by):
    def change(arrays):
        arrays[name][index] += by

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (altered("out/logits", (1, 3, 5), 1e-2), "out/logits: "),
        (altered("out/loss", (), 1e-2), "out/loss: "),
        (altered("out/hidden_states", (0, 0, 0, 0), np.nan), "out/hidden_states: nan"),
        (altered("out/greedy", (0, 20), 1), "out/greedy: 1 of 58 differ, first (0, 20)"),
        (altered("out/left_greedy", (1, -1), 1), "out/left_greedy: 1 of 58 differ"),
        (altered("out/greedy", (0, 3), 1), "out/greedy: 1 of 58 differ, first (0, 3)"),
        (altered("out/greedy_margin", (1, 2), 1e-2), "out/greedy_margin: "),
        (altered("out/greedy_logits", (1, 2, 0), 1e-2), "out/greedy_logits: "),
        (lambda arrays: arrays.pop("out/right_logits"), "out/right_logits was not compared"),
        (lambda arrays: arrays.pop("out/left_greedy"), "out/left_greedy was not compared"),
        (lambda arrays: arrays.update({"out/greedy": arrays["out/greedy"][:, :-1]}), "out/greedy: shape (2, 28)"),
        (lambda arrays: arrays.clear(), "was not compared"),
    ],
)
def test_a_change_fails(check, change, problem):
    result = check(change)
    assert not result.passed and problem in result.problems[0]


@pytest.fixture
def copy(tmp_path):
    """Writes a changed copy of the dump."""

    def write(change) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(DUMP, folder)
        with np.load(DUMP / "io.npz") as file:
            arrays = dict(file)
        change(arrays)
        np.savez(folder / "io.npz", **arrays)
        return folder

    return write


def test_integers_are_compared_exactly(check, copy):
    folder = copy(lambda arrays: arrays.update(position_ids=np.arange(2_000_000, 2_000_010)))
    assert check(folder=folder).passed
    (problem,) = check(altered("out/position_ids", 3, 1), folder=folder).problems
    assert problem == "out/position_ids: 1 of 10 differ, first (3,): 2000004, not 2000003"


def unclear(arrays):
    """Makes the second choice of the first row nearly a tie."""
    logits = arrays["greedy_logits"][0, 1]
    first, second = np.argsort(logits)[[-1, -2]]
    logits[second] = logits[first] - 5e-3
    arrays["greedy_margin"][:] = margins(arrays["greedy_logits"])


def test_an_unclear_choice_ends_the_row(check, copy):
    folder = copy(unclear)

    def other_choice(arrays):
        arrays["out/greedy"][0, 17 + 1 :] += 1
        arrays["out/greedy_logits"][0, 2:] += 1.0  # what follows another token has no counterpart
        arrays["out/greedy_margin"][0, 2:] += 1.0

    assert check(other_choice, folder=folder).passed
    assert not check(altered("out/greedy", (1, 17 + 1), 1), folder=folder).passed, "the other row is clear"
    assert not check(altered("out/greedy", (0, 17), 1), folder=folder).passed, "the first token is clear"

    def other_logits(arrays):
        other_choice(arrays)
        arrays["out/greedy_logits"][0, 1, 0] += 0.1

    assert "out/greedy_logits" in check(other_logits, folder=folder).problems[0], "up to there, logits decide"


def test_margins_follow_from_logits(check, copy):
    folder = copy(unclear)
    assert check(lambda arrays: arrays.pop("out/greedy_margin"), folder=folder).passed


def test_a_greedy_choice_without_margins_is_exact(check, copy):
    folder = copy(lambda arrays: [arrays.pop(name) for name in ("greedy_margin", "greedy_logits")])
    assert check(folder=folder).passed
    assert not check(altered("out/greedy", (0, -1), 1), folder=folder).passed


def test_further_files_are_compared_too(check, copy):
    folder = copy(lambda arrays: None)
    np.savez(folder / "io_transformers_4_57.npz", logits=np.ones(3, np.float32))
    assert check(folder=folder).passed
    result = check(lambda arrays: arrays.pop("out/transformers_4_57/logits"), folder=folder)
    assert result.problems == ["out/transformers_4_57/logits was not compared"]


def test_a_folder_without_arrays_fails(check, copy):
    folder = copy(lambda arrays: None)
    (folder / "io.npz").unlink()
    assert "FileNotFoundError" in check(folder=folder).problems[0]


def test_inputs_and_weights_are_handed_over(monkeypatch):
    seen = []
    monkeypatch.setitem(harness.families, "llama", lambda dump: seen.append(dump) or dump.arrays)
    monkeypatch.setitem(harness.folder_inputs, "llama", ("input_ids", "*_mask"))
    assert harness.check(DUMP, "llama_mha").passed
    (dump,) = seen
    inputs = dump.inputs(["input_ids", "left_mask", "right_mask"])
    assert inputs["input_ids"].shape == (2, 17)
    assert dump.folder == DUMP and dump.config["seed"] == 100
