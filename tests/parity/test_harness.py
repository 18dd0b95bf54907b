"""The parity harness can fail: whatever is missing, unknown, unreadable, wrong or left uncompared is a failure."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.parity import harness
from tests.parity.__main__ import main

ARRAYS = {
    "in/x": np.arange(1.0, 5.0, dtype=np.float32),
    "out/double": np.arange(2.0, 10.0, 2, dtype=np.float32),
    "grad/x": np.full(4, 2, np.float32),
    "grad_in/x": np.zeros(4, np.float32),
}


def double(dump: harness.Dump) -> dict[str, np.ndarray]:
    """A family whose implementation is right."""
    x = dump.inputs(["x"])["x"]
    return {"out/double": 2 * x, "grad/x": 2 * np.ones_like(x), "grad_in/x": 0 * x}


@pytest.fixture(autouse=True)
def toy_family(monkeypatch):
    monkeypatch.setitem(harness.families, "toy", double)


def write(folder: Path, name: str = "a", family: str | None = "toy", **changes: np.ndarray | None) -> None:
    """A dump of the toy family, with some arrays changed or, for None, left out."""
    arrays = {key: x for key, x in (ARRAYS | changes).items() if x is not None}
    np.savez(folder / f"{name}.npz", **arrays)
    if family is not None:
        (folder / f"{name}.json").write_text(json.dumps({"family": family, "width": 4}))


def run(folder: Path, capsys, *arguments: str) -> tuple[int, list[str]]:
    status = main([str(folder), *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_a_right_dump_passes_with_one_line(tmp_path, capsys):
    write(tmp_path)
    status, lines = run(tmp_path, capsys)
    assert status == 0
    assert lines[0].split()[0] == "a" and lines[0].endswith("pass")
    assert lines[1].startswith("1 of 1 dumps passed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out/double": ARRAYS["out/double"] * np.float32(1 + 2e-4)}, "out/double: 2.0e-04 > 1e-04"),
        ({"grad/x": ARRAYS["grad/x"] * np.float32(1 + 2e-3)}, "grad/x: 2.0e-03 > 1e-03"),
        ({"grad_in/x": np.full(4, 1e-8, np.float32)}, "grad_in/x: 1.0e-02 > 1e-03"),
        ({"out/double": np.array([2, np.nan, 6, 8], np.float32)}, "out/double: nan"),
        ({"out/double": np.array([2, np.inf, 6, 8], np.float32)}, "out/double: nan"),
        ({"out/double": ARRAYS["out/double"][:3]}, "out/double: shape (4,), theirs (3,)"),
        ({"out/other": np.ones(1)}, "out/other was not compared"),
        ({"grad/other": np.ones(1)}, "grad/other was not compared"),
        ({"out/double_diagonal": np.ones(1)}, "out/double_diagonal was not compared"),
        ({"out/double": None, "grad/x": None, "grad_in/x": None}, "nothing was compared"),
        ({"in/y": np.ones(1)}, "inputs are ['x', 'y'], this family reads ['x']"),
        ({"in/x": None}, "inputs are [], this family reads ['x']"),
        ({"outs/double": np.ones(1)}, "arrays of no known kind: outs/double"),
        ({"out/object": np.array([{}], object)}, "ValueError: Object arrays cannot be loaded"),
    ],
)
def test_a_wrong_dump_fails_and_says_why(tmp_path, capsys, changes, message):
    write(tmp_path, "bad", **changes)
    write(tmp_path, "good")
    status, lines = run(tmp_path, capsys)
    assert status == 1
    assert "FAIL" in lines[0] and message in lines[0]
    assert lines[1].endswith("pass"), "the other dump is still checked"
    assert lines[2].startswith("1 of 2")


def test_small_noise_around_a_zero_gradient_passes(tmp_path, capsys):
    write(tmp_path, **{"grad_in/x": np.full(4, 5e-10, np.float32)})
    assert run(tmp_path, capsys)[0] == 0


def test_ours_being_nan_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(harness.families, "toy", lambda dump: double(dump) | {"grad/x": np.full(4, np.nan)})
    write(tmp_path)
    status, lines = run(tmp_path, capsys)
    assert status == 1 and "grad/x: nan" in lines[0]


def test_an_uncompared_array_fails(tmp_path, capsys, monkeypatch):
    def forgetful(dump):
        return {name: x for name, x in double(dump).items() if name != "grad/x"}

    monkeypatch.setitem(harness.families, "toy", forgetful)
    write(tmp_path)
    status, lines = run(tmp_path, capsys)
    assert status == 1 and "grad/x was not compared" in lines[0]


def test_an_exception_is_that_dumps_failure(tmp_path, capsys, monkeypatch):
    def broken(dump):
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(harness.families, "toy", broken)
    write(tmp_path)
    status, lines = run(tmp_path, capsys)
    assert status == 1 and lines[0].endswith("FAIL: RuntimeError: two lines")


def test_exempt_arrays_are_read_and_do_not_count(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(harness.families, "s4", double)
    write(tmp_path, family="s4", **{"out/dA_diagonal": np.ones(1)})
    assert run(tmp_path, capsys)[0] == 0
    write(
        tmp_path, family="s4", **dict.fromkeys(["out/double", "grad/x", "grad_in/x"]), **{"out/dA_diagonal": np.ones(1)}
    )
    status, lines = run(tmp_path, capsys)
    assert status == 1 and "nothing was compared" in lines[0]


# --------------------------------------------------------------------------------------------------------- discovery


def test_the_family_is_the_json_key_and_not_the_name(tmp_path, capsys):
    write(tmp_path, "vim_v1")
    assert run(tmp_path, capsys)[0] == 0


@pytest.mark.parametrize("content", ['{"family": "no_such"}', '{"width": 4}', '{"family": 3}', "[]", "{broken"])
def test_an_unknown_family_fails(tmp_path, capsys, content):
    write(tmp_path)
    (tmp_path / "a.json").write_text(content)
    status, lines = run(tmp_path, capsys)
    assert status == 1 and "FAIL" in lines[0]


def test_a_folder_dump_of_an_unknown_family_fails(tmp_path, capsys):
    (tmp_path / "model.v2").mkdir()
    (tmp_path / "model.v2" / "meta.json").write_text('{"family": "no_such"}')
    write(tmp_path)
    status, lines = run(tmp_path, capsys)
    assert status == 1
    assert lines[1].split()[0] == "model.v2" and "no module for family 'no_such'" in lines[1]


def test_a_truncated_file_fails(tmp_path, capsys):
    write(tmp_path)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        status, lines = run(tmp_path, capsys)
        assert status == 1 and "FAIL" in lines[0]


def test_a_description_without_arrays_fails(tmp_path, capsys):
    write(tmp_path, "a")
    write(tmp_path, "b")
    (tmp_path / "a.npz").unlink()
    status, lines = run(tmp_path, capsys)
    assert status == 1 and lines[0].startswith("a ") and "FAIL" in lines[0]
    assert lines[1].startswith("b ") and lines[1].endswith("pass")


def test_folders_below_are_searched_and_only_selects(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", "a")
    write(tmp_path, "b")
    write(tmp_path, "c", **{"grad/x": np.ones(4)})
    assert run(tmp_path, capsys)[0] == 1
    for names in ("a,b", "sub/a", "b"):
        status, lines = run(tmp_path, capsys, "--only", names)
        assert status == 0 and len(lines) == len(names.split(",")) + 1


@pytest.mark.parametrize(
    "arguments", [["--only", "nothing"], ["--only", "a,nothing"], ["--only", ""], ["--only", "a,"]]
)
def test_a_name_that_is_not_there_fails(tmp_path, capsys, arguments):
    write(tmp_path)
    status, lines = run(tmp_path, capsys, *arguments)
    assert status == 1 and "no dump named" in lines[0]


def test_nothing_to_check_fails(tmp_path, capsys):
    assert run(tmp_path, capsys) == (1, [f"{tmp_path}: no reference dump in this folder"])
    assert run(tmp_path / "missing", capsys) == (1, [f"{tmp_path / 'missing'}: no such folder"])


# ----------------------------------------------------------------------------------------------------------- bundles


@pytest.fixture
def toy_bundle(monkeypatch):
    op = harness.Bundle(
        "toy_op", frozenset({"u", "meta/on"}), frozenset({"v"}), lambda case: {"out/y": 2 * case.arrays["in/u"]}
    )
    monkeypatch.setitem(harness.bundles, "toy_op", op)


def cases(**changes: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {}
    for case in ("000", "001"):
        arrays |= {f"{case}/name": np.array("any"), f"{case}/in/u": np.ones(2), f"{case}/meta/on": np.array(True)}
        arrays |= {f"{case}/out/y": 2 * np.ones(2)}
    return {name: x for name, x in (arrays | changes).items() if x is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "pass"),
        ({"001/out/y": np.ones(2)}, "001#out/y: 1.0e+00 > 1e-04"),
        ({"001/out/y": None}, "001#nothing was compared"),
        ({"001/out/state": np.ones(2)}, "001#out/state was not compared"),
        ({"001/in/w": np.ones(2)}, "no op takes the inputs ['meta/on', 'u', 'w']"),
        ({"001/meta/off": np.ones(2)}, "no op takes the inputs"),
        ({"stray": np.ones(2)}, "arrays of no known kind"),
    ],
)
def test_bundles_are_known_by_their_inputs(tmp_path, capsys, toy_bundle, changes, message):
    np.savez(tmp_path / "selective_scan.npz", **cases(**changes))
    status, lines = run(tmp_path, capsys)
    assert status == (0 if message == "pass" else 1)
    assert message in lines[0]
