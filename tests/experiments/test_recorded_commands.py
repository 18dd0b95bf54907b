"""The command that a result records still names an experiment and settings that there are, under former names, too."""

import importlib
import json

import pytest
import tyro

from experiments import FORMER, tables
from experiments.shared.common import RESULTS
from tests.repo.sources import ROOT

FILES = sorted((ROOT / RESULTS).glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_command_runs(path):
    record = json.loads(path.read_text())
    python, flag, name, *words = record["command"].split()
    assert (python, flag) == ("python", "-m")
    module = importlib.import_module(name)
    config = tyro.cli(module.Config, args=words)
    assert isinstance(config, module.Config) and callable(module.main)
    short = name.removeprefix("experiments.")
    assert path.stem.startswith(FORMER.get(short, short))


def test_former_names_are_the_same_experiments():
    for former, name in FORMER.items():
        old, new = (importlib.import_module(f"experiments.{each}") for each in (former, name))
        assert (old.main, old.Config) == (new.main, new.Config)
        assert f"experiments.{name}" in old.__doc__


def test_results_under_former_names_are_in_the_table():
    table = tables.render("sequences", ROOT / RESULTS)
    assert table.count("\n") == 1 + len([path for path in FILES if _name(path) in tables.TABLES["sequences"][0]])
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def _name(path):
    name = json.loads(path.read_text())["name"]
    return FORMER.get(name, name)
