"""The dumps in tests/golden, and controls: what the harness must not let pass."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.parity import families, harness  # noqa: F401  (importing `families` registers them)

GOLDEN = Path(__file__).parents[1] / "golden"
DUMPS = harness.discover(GOLDEN)


def test_there_are_dumps_of_every_family():
    described = [path / "meta.json" if path.is_dir() else path.with_suffix(".json") for path in DUMPS]
    descriptions = [json.loads(path.read_text()) for path in described if path.is_file()]
    assert {description["family"] for description in descriptions} == set(harness.families)
    assert len(DUMPS) - len(descriptions) == len(harness.bundles)


SLOW = {"dis", "mambavision", "tome", "vlm", "vmamba"}
"""Folders of models that take long to compile; `make test-parity` checks them too."""

SLOW_DUMPS = {
    "ann_s4",
    "mamba3_module_mimo_norm",
    "s4_dplr_fout",
    "s4_s4d_lin_untied_dt",
    "s4nd_2d_diag",
    "s5_cnormal_bidir",
    "shared_mamba1",
    "vila15_mlp_downsample_g5",
    "hf_falcon_mamba",
    "hf_mamba2_limit",
    "official_mamba1_bias",
    "official_mamba2_groups",
    "vim_v1",
    "vim_v2_rope",
}
"""Whole models beside "hf_mamba" and "vim_v2_midcls_div2", and second dumps of a kind; all in `make test-parity`."""


def is_slow(path: Path) -> bool:
    return path.parent.name in SLOW or path.stem in SLOW_DUMPS


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if is_slow(path) else ()) for path in DUMPS],
    ids=lambda path: path.stem,
)
def test_parity(path):
    result = harness.check(path, path.stem)
    assert result.passed, result.line()
    assert result.worst(["out/"]) < 1e-5 and result.worst(["grad"]) < 1e-4, (
        "much worse than it has been: " + result.line()
    )


@pytest.fixture
def copy(tmp_path):
    """Writes a changed copy of a Vim dump and checks it."""

    def check(change) -> harness.Result:
        original = GOLDEN / "vim" / "vim_v2_midcls_div2"
        with np.load(original.with_suffix(".npz")) as file:
            arrays = dict(file)
        change(arrays)
        np.savez(tmp_path / "changed.npz", **arrays)
        (tmp_path / "changed.json").write_text(original.with_suffix(".json").read_text())
        return harness.check(tmp_path / "changed.npz", "changed")

    return check


def negate(name: str):
    def change(arrays):
        arrays[name] = -arrays[name]

    return change


def exchange(one: str, other: str):
    def change(arrays):
        arrays[one], arrays[other] = arrays[other], arrays[one]

    return change


@pytest.mark.parametrize(
    "change",
    [
        negate("param/layers.1.mixer.A_log"),
        pytest.param(negate("param/layers.3.mixer.D_b"), marks=pytest.mark.slow),
        pytest.param(negate("param/cls_token"), marks=pytest.mark.slow),
        exchange("param/layers.2.mixer.conv1d.weight", "param/layers.2.mixer.conv1d_b.weight"),
        exchange("param/layers.0.norm.weight", "param/layers.1.norm.weight"),
    ],
    ids=["A_log", "D_b", "cls_token", "directions", "layers"],
)
def test_a_wrong_parameter_fails(copy, change):
    result = copy(change)
    assert not result.passed
    assert result.worst(["out/"]) > 1e-3 and result.worst(["grad"]) > 1e-2


def test_a_wrong_gradient_alone_fails(copy):
    result = copy(negate("grad/layers.1.mixer.A_log"))
    assert result.problems == ["grad/layers.1.mixer.A_log: 2.0e+00 > 1e-03"]


def test_a_parameter_too_many_or_too_few_fails(copy):
    def change(arrays):
        arrays["param/layers.4.mixer.D"] = arrays.pop("param/layers.3.mixer.D")

    (problem,) = copy(change).problems
    assert "unknown: layers.4.mixer.D" in problem and "missing: layers.3.mixer.D" in problem


def test_a_removed_comparison_fails(copy, monkeypatch):
    vim = harness.families["vim"]
    monkeypatch.setitem(
        harness.families, "vim", lambda dump: {k: x for k, x in vim(dump).items() if k != "grad/head.bias"}
    )
    assert copy(lambda arrays: None).problems == ["grad/head.bias was not compared"]
