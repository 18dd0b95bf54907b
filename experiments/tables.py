"""Writes README's table of results from the results files: `python -m experiments.tables`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import FORMER, discretisation_study, lti_shootout
from experiments.shared.common import RESULTS

__all__ = ["TABLES", "classifier_table", "main", "render", "sequence_table"]

README = Path("README.md")

Table = Callable[[list[dict[str, Any]]], str]
"""Makes Markdown of results files."""


def classifier_table(records: list[dict[str, Any]]) -> str:
    """One row for each classifier's results file, in Markdown."""
    lines = [
        "| data | model | parameters | test accuracy, % | seeds | minutes a seed | device | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        accuracy, minutes = record["metrics"]["test_accuracy"], record["seconds"]["mean"] / 60
        cells = [
            record["data"]["name"],
            record["config"]["model"],
            f"{record['parameters'] / 1e6:.2f} M",
            _percent(accuracy),
            str(len(record["seeds"])),
            f"{minutes:.1f}",
            record["device"]["kind"],
            f"`{record['command']}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sequence_table(records: list[dict[str, Any]]) -> str:
    """One row for each results file of a sequence classifier, in Markdown, with the published value beside ours."""
    lines = [
        "| data | layer | length | parameters | test accuracy, % | published, % | seeds | minutes | device | command |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        data, published = record["data"], record.get("published")
        accuracy = [_percent(record["metrics"]["test_accuracy"])]
        if "half_rate_accuracy" in record["metrics"]:
            accuracy.append(f"{_percent(record['metrics']['half_rate_accuracy'])} at half the rate")
        if "baseline" in record:
            accuracy.append(f"{record['baseline']['label']}: {record['baseline']['accuracy']:.1f}")
        cells = [
            data["name"],
            record["config"]["layer"],
            f"{data['length']:,}",
            f"{record['parameters']:,}",
            "; ".join(accuracy),
            f"{published['accuracy']:.2f} ({published['label']}, {published['source']})" if published else "",
            str(len(record["seeds"])),
            f"{record['seconds']['mean'] / 60:.1f}",
            record["device"]["kind"],
            f"`{record['command']}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(found: dict[str, Any]) -> str:
    spread = f" ± {100 * found['spread']:.2f}" if found["spread"] is not None else ""
    return f"{100 * found['mean']:.2f}{spread}"


def _one_by_one(table: Callable[[dict[str, Any]], str]) -> Table:
    """The tables of several results files one below the other, each under the command that made it."""

    def tables(records: list[dict[str, Any]]) -> str:
        return "\n\n".join(
            f"`{record['command']}`, {len(record['seeds'])} seed(s) on {record['device']['kind']}:\n\n{table(record)}"
            for record in records
        )

    return tables


TABLES: dict[str, tuple[tuple[str, ...], Table]] = {
    "vim_cifar": (("vim_cifar",), classifier_table),
    "sequences": (
        ("sequential_mnist", "listops", "sequential_cifar", "spoken_digits", "s4nd_cifar", "pathfinder32"),
        sequence_table,
    ),
    "lti_shootout": (("lti_shootout",), _one_by_one(lti_shootout.table)),
    "discretisation_study": (("discretisation_study",), _one_by_one(discretisation_study.table)),
}
"""The experiments whose results each table of README shows, by the name in its markers, and how it is written."""


def render(name: str, folder: Path = RESULTS) -> str:
    """The table of a name in `TABLES`, from the results files of a folder, without smoke runs."""
    experiments, table = TABLES[name]
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    wanted = [record for record in records if _name(record) in experiments and not record["config"]["smoke"]]
    return table(sorted(wanted, key=lambda record: experiments.index(_name(record))))


def _name(record: dict[str, Any]) -> str:
    return FORMER.get(record["name"], record["name"])


def _constant(text: str) -> Callable[[re.Match[str]], str]:
    return lambda _: text  # a replacement that is a function keeps its backslashes


def main() -> None:
    """Rewrites README between the markers `<!-- results:NAME -->` and `<!-- /results:NAME -->` that it has."""
    text = README.read_text(encoding="utf-8")
    for name in TABLES:
        begin, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
        table = render(name)
        text = re.sub(f"{begin}.*{end}", _constant(f"{begin}\n{table}\n{end}"), text, flags=re.DOTALL)
    README.write_text(text, "utf-8")
    print(f"{README}: the tables {', '.join(TABLES)}")


if __name__ == "__main__":
    main()
