"""README's table is what the results files say, and every committed result has what a claim needs."""

import json

import pytest

from experiments.tables import classifier_table
from tests.repo.sources import ROOT

RESULTS = sorted((ROOT / "experiments" / "results").glob("*.json"))


def test_readme_table_is_that_of_the_results():
    records = [json.loads(path.read_text()) for path in RESULTS if path.name.startswith("vim_cifar")]
    table = classifier_table([record for record in records if not record["config"]["smoke"]])
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_its_origin(path):
    record = json.loads(path.read_text())
    assert {"command", "commit", "config", "device", "versions", "seeds", "metrics", "seconds", "data"} <= set(record)
    assert len(record["data"]["sha256"]) == 64
    assert (ROOT / "figures" / f"{path.stem}.png").is_file()
